"""Fits what the hand touches: on true frames before the network is trained, and once more at its end on those that it
draws itself.

The few frames in which a gripper closes or something is pushed decide most manipulation; a run that meets them once in
twenty frames learns them slowly. This part is small and needs nothing of the network, so it sees them thousands of
times first. Where an episode says where its things were (a simulator's), it learns how they moved. Of others nobody
tells: each place of the next picture, looked up around the fingertips, is explained as what was there before, or as
what a rigid motion brought there, or as something else (compare SE3-Nets, Byravan and Fox 2017). That is a weak
teacher: the arm moves as well, and what moves by more than its own width looks like nothing that was there before.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from wvl_ros.training.contact_losses import misplaced, movement_loss
from wvl_ros.training.contact_moments import Moments, frames_by_kind, moments_at, true_moments
from wvl_ros.training.frame_cache import FrameCache
from wvl_ros.world_model import composition
from wvl_ros.world_model.contact import Contact, likeliest, spread
from wvl_ros.world_model.kinematics import GRIPPER, Kinematics
from wvl_ros.world_model.model import WorldModel
from wvl_ros.world_model.rollout import has_bfloat16

_BATCH, _RATE = 64, 1e-3
_SHARES = {"closing": 0.3, "moving": 0.4, "low": 0.2, "other": 0.1}  # of the frames, see `frames_by_kind`
_HELD_OUT = 10  # every so many an episode is left for the report
_NOISE = 0.06  # on the pictures of half of them: imagined ones are not as clean
_AGREES = 0.1  # how near the told position must be to the true one
_ROLLOUTS = 48  # imagined at a time
_SOME = 0.1  # share of the frames in which nothing is touched that are learned from in a rollout


class OwnFrames(NamedTuple):
    """Frames that the model drew itself: `last` (N, C, G, G), `kinematics` (N, 39), of which `episode` and with which
    number `moment` (N,), and whether something is closed on or moved then, `telling` (N,) bool.
    """

    last: Tensor
    kinematics: Tensor
    episode: Tensor
    moment: Tensor
    telling: Tensor


def fit_contact(
    model: WorldModel, cache: FrameCache, generator: torch.Generator, updates: int, own: OwnFrames | None = None
) -> dict[str, float]:
    """Trains `model.contact`, with `own` half of it on these.

    Returns:
        How right it is about true frames of unseen episodes, see `_report`.
    """
    pools, unseen = frames_by_kind(cache), _unseen(cache)
    held = {name: pool[unseen[pool[:, 0]]] for name, pool in pools.items()}
    known = {name: pool[~unseen[pool[:, 0]]] for name, pool in pools.items()}
    batch = _BATCH // 2 if own is not None and len(own.moment) else _BATCH
    whole = sum(_SHARES[name] for name, pool in known.items() if len(pool))
    pairs = [(pool, round(_SHARES[name] / whole * batch)) for name, pool in known.items() if len(pool)]
    if updates < 1 or not pairs:
        return {}
    optimizer = torch.optim.AdamW(model.contact.parameters(), _RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    for _ in tqdm(range(updates), desc="contact", disable=None):
        rows = torch.cat([pool[torch.randint(len(pool), (count,), generator=generator)] for pool, count in pairs])
        moments = _clouded(true_moments(cache, rows), generator)
        if own is not None and batch < _BATCH:
            moments = _together(moments, _own_moments(cache, own, _draw(own, batch, generator)))
        told, next_grip = _tell(model, moments)
        loss = F.cross_entropy(told.grip, spread(next_grip)) + movement_loss(model, moments, told)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.contact.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return _report(model, cache, held)


@torch.no_grad()
def _report(model: WorldModel, cache: FrameCache, held: dict[str, Tensor]) -> dict[str, float]:
    """Of frames by kind: `grip_KIND_right`; where it is known how things moved, `moving_mm` that they truly did, and by
    how much the model was wrong, `moving_wrong_mm`; medians.
    """
    found = {}
    for name, rows in held.items():
        asked = rows[:: max(1, len(rows) // 2000)]
        if not len(asked):
            continue
        apart, wrong, way = [], [], []
        for some in asked.split(256):
            moments = true_moments(cache, some)
            told, true = _tell(model, moments)
            apart.append((likeliest(told.grip) - true).abs()[:, 0])
            if name == "moving":
                parts = misplaced(model, moments, told)
                wrong.append(parts["apart"])
                way.append(parts["way"])
        found[f"grip_{name}_right"] = round(float((torch.cat(apart) < _AGREES).float().mean()), 4)
        if wrong:
            found["moving_mm"] = round(1000 * float(torch.cat(way).median()), 2)
            found["moving_wrong_mm"] = round(1000 * float(torch.cat(wrong).median()), 2)
    return found


@torch.no_grad()
def imagined_contacts(model: WorldModel, cache: FrameCache, generator: torch.Generator, rollouts: int) -> OwnFrames:
    """Frames that the model draws itself, in so many rollouts of episodes in which something is closed on or moved; it
    is told where the gripper truly is, so that what it draws stays what truly happened.
    """
    pools = frames_by_kind(cache)
    telling = torch.cat([pools["closing"], pools["moving"]])
    telling = telling[~_unseen(cache)[telling[:, 0]]]
    found: list[OwnFrames] = []
    tokens = model.instruction.tokens(cache.instructions)
    tells = torch.zeros(len(cache.kinematics), dtype=torch.bool)  # by step
    tells[cache.step(*telling.unbind(1))] = True
    episodes, frames_in = telling.unbind(1)
    ends = torch.zeros(len(cache), dtype=torch.long).scatter_reduce(0, episodes, frames_in + 1, reduce="amax")
    batches = -(-rollouts // _ROLLOUTS) if len(telling) else 0
    for _ in tqdm(range(batches), desc="contact on own rollouts", disable=None):
        episode = telling[torch.randint(len(telling), (_ROLLOUTS,), generator=generator), 0].unique()
        start = torch.zeros_like(episode)
        first, kinematics = cache.frame(episode, start), cache.kinematics[cache.step(episode, start)]
        calibrated, lengths = cache.calibrated[episode], ends[episode]
        context = model.context(first, kinematics, tokens[episode], calibrated)
        last = previous = first
        for t in range(int(lengths.max())):
            on = (lengths > t).nonzero()[:, 0]  # the others are drawn no more
            if len(on) < len(episode):
                context, episode, lengths = context.select(on), episode[on], lengths[on]
                last, previous, kinematics, calibrated = last[on], previous[on], kinematics[on], calibrated[on]
            index = torch.full_like(episode, t)
            actions, after = cache.chunk(episode, index), cache.step(episode, index + 1)
            true = cache.kinematics[after, GRIPPER : GRIPPER + 1]
            here = tells[cache.step(episode, index)]
            some = torch.rand(len(episode), generator=generator) < _SOME
            rows = (here | some).nonzero()[:, 0]
            frames = last[rows].to(torch.bfloat16)
            found.append(OwnFrames(frames, kinematics[rows], episode[rows], index[rows], here[rows]))
            noise = torch.randn(last.shape, generator=generator)
            with torch.autocast("cpu", torch.bfloat16, enabled=has_bfloat16()):
                drawn = model(noise, torch.ones(len(episode)), last, previous, kinematics, actions, context, true)
            previous, last, kinematics = last, drawn.frame.clamp(-1, 1), drawn.kinematics
    if not found:
        nothing = torch.zeros(0, dtype=torch.long)
        return OwnFrames(cache.frame(nothing, nothing), cache.kinematics[:0], nothing, nothing, nothing.bool())
    return OwnFrames(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def _draw(own: OwnFrames, count: int, generator: torch.Generator) -> Tensor:
    """Rows of `own`: telling ones and others, where there are any."""
    pools = [rows.nonzero()[:, 0] for rows in (own.telling, ~own.telling)]
    counts = [round(0.6 * count), count - round(0.6 * count)]
    return torch.cat(
        [
            pool[torch.randint(len(pool), (n,), generator=generator)]
            for pool, n in zip(pools, counts, strict=True)
            if len(pool)
        ]
    )


def _own_moments(cache: FrameCache, own: OwnFrames, rows: Tensor) -> Moments:
    return moments_at(cache, own.episode[rows], own.moment[rows], own.last[rows].float(), own.kinematics[rows])


def _together(a: Moments, b: Moments) -> Moments:
    return Moments(*(torch.cat(parts) for parts in zip(a, b, strict=True)))


def _clouded(moments: Moments, generator: torch.Generator) -> Moments:
    """With noise on half of the pictures."""
    n = len(moments.calibrated)
    amount = _NOISE * torch.rand(n, generator=generator) * (torch.rand(n, generator=generator) < 0.5)
    noise = torch.randn(moments.last.shape, generator=generator)
    return moments._replace(last=moments.last + amount[:, None, None, None] * noise)


def _tell(model: WorldModel, moments: Moments) -> tuple[Contact, Tensor]:
    """What the model tells of frames, and the gripper's true positions (B, 1) after them."""
    with torch.no_grad():
        now, first_k = Kinematics.unpack(moments.kinematics), Kinematics.unpack(moments.first_kinematics)
        then, _ = model.move(moments.kinematics, moments.actions, moments.calibrated)
        patch = int(model.config["patch"])
        last, first = (composition.Picture.of(frame, patch) for frame in (moments.last, moments.first))
    commands = moments.actions[:, :, 6]
    told = model.contact(last.images, first.images, first_k, now, then, commands, last.views[:, 2], moments.calibrated)
    return told, moments.next_kinematics[:, GRIPPER : GRIPPER + 1]


def _unseen(cache: FrameCache) -> Tensor:
    """(E,) bool: a tenth of the episodes, and their mirror images (`mirror.with_mirror_images` keeps the order)."""
    number = torch.arange(len(cache))
    number[cache.calibrated < 0] = number[cache.calibrated > 0][: int((cache.calibrated < 0).sum())]
    return number % _HELD_OUT == _HELD_OUT - 1
