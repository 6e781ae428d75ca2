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

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from wvl_ros.training.frame_cache import FrameCache
from wvl_ros.training.touched import Touched, turn_between
from wvl_ros.world_model import composition
from wvl_ros.world_model.contact import CELL, CELLS, MIDDLE, Contact, likeliest, spread
from wvl_ros.world_model.kinematics import GRIPPER, Kinematics
from wvl_ros.world_model.model import WorldModel
from wvl_ros.world_model.patches import VIEWS
from wvl_ros.world_model.rollout import has_bfloat16

_BATCH, _RATE = 64, 1e-3
_SHARES = {"closing": 0.3, "moving": 0.35, "low": 0.2, "other": 0.15}  # of the frames, see `frames_by_kind`
_LOW = 0.07  # m above the table: fingertips that may touch something
_HELD_OUT = 10  # every so many an episode is left for the report
_NOISE = 0.06  # on the pictures of half of them: imagined ones are not as clean
_AGREES = 0.1  # how near the told position must be to the true one
_ROLLOUTS = 48  # imagined at a time
_SOME = 0.1  # share of the frames in which nothing is touched that are learned from in a rollout
_SPREAD = 0.1  # standard deviation of a colour that is explained, of -1..1
_ELSE = 0.05  # share of places with another cause, of any colour
_EXPLAIN = 0.2  # weight of the pictures beside the gripper's position
_MOTION, _TURNED, _MASK = 0.5, 0.1, 4.0  # weights of what is known of things, in units of
_FEW, _LITTLE = 0.01, 0.1  # m and rad
_STIRRED, _LIFTED = 0.001, 0.012  # m: what moved less stands still; what is higher above the table is held


class Moments(NamedTuple):
    """Frames with what comes next: `last`, `first`, `next` (N, C, G, G), `kinematics`, `first_kinematics`,
    `next_kinematics` (N, 39) packed, `actions` (N, K, 7), `calibrated` (N,), `touched` (N, 8) packed.
    """

    last: Tensor
    first: Tensor
    next: Tensor
    kinematics: Tensor
    first_kinematics: Tensor
    next_kinematics: Tensor
    actions: Tensor
    calibrated: Tensor
    touched: Tensor


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
        moments = _clouded(_true_moments(cache, rows), generator)
        if own is not None and batch < _BATCH:
            moments = _together(moments, _own_moments(cache, own, _draw(own, batch, generator)))
        told, next_grip = _tell(model, moments)
        loss = F.cross_entropy(told.grip, spread(next_grip)) + _movement_loss(model, moments, told)
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
            moments = _true_moments(cache, some)
            told, true = _tell(model, moments)
            apart.append((likeliest(told.grip) - true).abs()[:, 0])
            if name == "moving":
                parts = _misplaced(model, Touched.unpack(moments.touched), told)
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


def _true_moments(cache: FrameCache, rows: Tensor) -> Moments:
    """Those at `rows` (N, 2) of episode and index."""
    episode, index = rows.unbind(1)
    now = cache.kinematics[cache.step(episode, index)]
    return _moments(cache, episode, index, cache.frame(episode, index), now)


def _own_moments(cache: FrameCache, own: OwnFrames, rows: Tensor) -> Moments:
    return _moments(cache, own.episode[rows], own.moment[rows], own.last[rows].float(), own.kinematics[rows])


def _moments(cache: FrameCache, episode: Tensor, index: Tensor, last: Tensor, now: Tensor) -> Moments:
    start, after = torch.zeros_like(index), index + 1
    first_k, next_k = (cache.kinematics[cache.step(episode, at)] for at in (start, after))
    first, following = cache.frame(episode, start), cache.frame(episode, after)
    known = cache.touched[cache.step(episode, index)]
    calibrated, actions = cache.calibrated[episode], cache.chunk(episode, index)
    return Moments(last, first, following, now, first_k, next_k, actions, calibrated, known)


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


def _movement_loss(model: WorldModel, moments: Moments, told: Contact) -> Tensor:
    """How wrong the motion and the mask are: by what is known of the thing, or by the pictures; a scalar."""
    known = ~moments.touched.isnan().any(1)
    rest = _EXPLAIN * (_unexplained(model, moments, told) * ~known).mean()
    if not bool(known.any()):
        return rest
    parts = _misplaced(model, Touched.unpack(moments.touched.nan_to_num()), told)
    return rest + sum(
        weight * (parts[name] * known).mean()
        for name, weight in (("motion", _MOTION), ("turn", _TURNED), ("mask", _MASK))
    )


def _misplaced(model: WorldModel, thing: Touched, told: Contact) -> dict[str, Tensor]:
    """Of each moment (B,): `motion`, how far it says the thing came from the wrong place; `turn`; `mask`; 0 where the
    thing cannot be touched. And what the report needs: `apart` in m, `way` in m, and `moved` and `still` bool.
    """
    below, gap = told.below, thing.after[:, :2] - thing.before[:, :2]
    away = told.before(thing.after[:, None, :2])[:, 0] - thing.before[:, :2]
    inside = below.local(thing.after[:, None, :2])[:, 0].abs().amax(1) < CELLS * CELL / 2
    near = inside & (below.height < _LOW) & (thing.height < thing.half + _LIFTED)
    moved = near & (gap.norm(dim=1) > _STIRRED)
    turned = turn_between(thing.before[:, 2], thing.after[:, 2])
    spots = below.spots(model.contact.get_buffer("cells").expand(len(gap), -1, -1)) - thing.after[:, None, :2]
    cosine, sine = thing.after[:, 2].cos()[:, None], thing.after[:, 2].sin()[:, None]
    sides = (cosine * spots[..., 0] + sine * spots[..., 1], cosine * spots[..., 1] - sine * spots[..., 0])
    covered = torch.maximum(sides[0].abs(), sides[1].abs()) < thing.half[:, None] + CELL / 2
    covered = (covered & moved[:, None]).float()
    return {
        "motion": F.smooth_l1_loss(away / _FEW, torch.zeros_like(away), reduction="none").sum(1) * near,
        "turn": F.smooth_l1_loss((told.motion[:, 2] - turned) / _LITTLE, torch.zeros_like(turned), reduction="none")
        * moved,
        "mask": F.binary_cross_entropy_with_logits(told.mask.flatten(1), covered, reduction="none").mean(1),
        "apart": away.norm(dim=1),
        "way": gap.norm(dim=1),
        "moved": moved,
        "still": near & ~moved,
    }


def _unexplained(model: WorldModel, moments: Moments, told: Contact) -> Tensor:
    """Negative log-likelihood (B,) of the next pictures around the fingertips, mean over their places."""
    contact, patch_size = model.contact, int(model.config["patch"])
    last, after = (composition.images(composition.views(frame), patch_size) for frame in (moments.last, moments.next))
    now, next_k = Kinematics.unpack(moments.kinematics), Kinematics.unpack(moments.next_kinematics)
    spots = told.below.spots(contact.get_buffer("cells").expand(len(last), -1, -1))
    here, before = (F.pad(some, (0, 1), value=MIDDLE) for some in (spots, told.before(spots)))
    mask = told.mask.flatten(1)
    other = torch.full_like(mask, math.log(_ELSE / 8))  # colours lie in a cube of volume 8
    likelihood = torch.zeros(len(last))
    for view in range(VIEWS):
        true, seen_then = contact.look(view, here, after[:, view], next_k)
        still, seen_now = contact.look(view, here, last[:, view], now)
        moved, _ = contact.look(view, before, last[:, view], now)
        causes = [F.logsigmoid(mask) + _density(moved, true), F.logsigmoid(-mask) + _density(still, true), other]
        known = seen_then & seen_now & (moments.calibrated != 0)[:, None]
        likelihood = likelihood + (torch.logsumexp(torch.stack(causes), 0) * known).mean(1)
    return -likelihood / VIEWS


def _density(found: Tensor, true: Tensor) -> Tensor:
    """Log-density (B, N) of colours (B, 3, N) around those found."""
    return -(found - true).square().sum(1) / (2 * _SPREAD**2) - 3 * math.log(_SPREAD * math.sqrt(2 * math.pi))


def _unseen(cache: FrameCache) -> Tensor:
    """(E,) bool: a tenth of the episodes, and their mirror images (`mirror.with_mirror_images` keeps the order)."""
    number = torch.arange(len(cache))
    number[cache.calibrated < 0] = number[cache.calibrated > 0][: int((cache.calibrated < 0).sum())]
    return number % _HELD_OUT == _HELD_OUT - 1


def frames_by_kind(cache: FrameCache) -> dict[str, Tensor]:
    """Episode and index (N, 2) of all frames that have a next one: 'closing', after which a gripper told to close moves
    or has just stopped; 'moving', others after which a thing is known to be moved along the table; 'low', others in
    which the hand is low; 'other'.
    """
    episode = torch.repeat_interleave(torch.arange(len(cache)), (cache.frame_count - 1).clamp(min=0))
    first = torch.cumsum((cache.frame_count - 1).clamp(min=0), 0) - (cache.frame_count - 1).clamp(min=0)
    index = torch.arange(len(episode)) - first[episode]
    step = cache.step(episode, index)
    after = step + cache.actions_per_frame
    told = cache.chunk(episode, index)[:, :, 6].amax(1) > 0.5
    closing = told & ((cache.kinematics[after, GRIPPER] - cache.kinematics[step, GRIPPER]).abs() > 0.02)
    tips = [Kinematics.unpack(part).state()[:, :3] for part in cache.kinematics[after].split(1 << 14)]
    tip = torch.cat(tips) if tips else cache.kinematics[after, :3]
    thing = Touched.unpack(cache.touched[step])
    gap, away = thing.after[:, :2] - thing.before[:, :2], thing.after[:, :2] - tip[:, :2]
    low = (tip[:, 2] < _LOW) & (cache.calibrated[episode] != 0)
    moving = low & (gap.norm(dim=1) > _STIRRED) & (away.abs().amax(1) < CELLS * CELL / 2)
    moving &= thing.height < thing.half + _LIFTED
    kinds = {"closing": closing, "moving": moving & ~closing, "low": low & ~moving & ~closing}
    kinds["other"] = ~(closing | moving | low)
    rows = torch.stack([episode, index], 1)
    return {name: rows[chosen] for name, chosen in kinds.items()}
