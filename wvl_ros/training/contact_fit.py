"""Fits what the hand touches: on true frames before the network is trained, and once more at its end on those that it
draws itself.

The few frames in which a gripper closes or something is pushed decide most manipulation; a run that meets them once in
twenty frames learns them slowly. This part is small and needs nothing of the network, so it sees them thousands of
times first. Nobody tells where objects are: each place of the next picture, looked up around the fingertips, is
explained as what was there before, or as what a rigid motion brought there, or as something else (compare SE3-Nets,
Byravan and Fox 2017).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from wvl_ros.training.frame_cache import FrameCache
from wvl_ros.world_model import composition
from wvl_ros.world_model.contact import MIDDLE, Contact, likeliest, spread
from wvl_ros.world_model.kinematics import GRIPPER, Kinematics
from wvl_ros.world_model.model import WorldModel
from wvl_ros.world_model.patches import VIEWS
from wvl_ros.world_model.rollout import has_bfloat16

_BATCH, _RATE = 64, 1e-3
_SHARES = (0.45, 0.35, 0.2)  # of closing frames, of others with a low hand, of the rest
_LOW = 0.07  # m above the table: fingertips that may touch something
_HELD_OUT = 10  # every so many an episode is left for the report
_NOISE = 0.06  # on the pictures of half of them: imagined ones are not as clean
_AGREES = 0.1  # how near the told position must be to the true one
_ROLLOUTS = 48  # imagined at a time
_SOME = 0.1  # share of the frames without a closing that are learned from in a rollout
_SPREAD = 0.1  # standard deviation of a colour that is explained, of -1..1
_ELSE = 0.05  # share of places with another cause, of any colour
_EXPLAIN = 0.2  # weight of the pictures beside the gripper's position


class Moments(NamedTuple):
    """Frames with what comes next: `last`, `first`, `next` (N, C, G, G), `kinematics`, `first_kinematics`,
    `next_kinematics` (N, 39) packed, `actions` (N, K, 7), `calibrated` (N,).
    """

    last: Tensor
    first: Tensor
    next: Tensor
    kinematics: Tensor
    first_kinematics: Tensor
    next_kinematics: Tensor
    actions: Tensor
    calibrated: Tensor


class Closings(NamedTuple):
    """Frames that the model drew itself: `last` (N, C, G, G), `kinematics` (N, 39), of which `episode` and with which
    number `moment` (N,), and whether the gripper closes then, `closing` (N,) bool.
    """

    last: Tensor
    kinematics: Tensor
    episode: Tensor
    moment: Tensor
    closing: Tensor


def fit_contact(
    model: WorldModel, cache: FrameCache, generator: torch.Generator, updates: int, own: Closings | None = None
) -> dict[str, float]:
    """Trains `model.contact`, with `own` half of it on these.

    Returns:
        The share of unseen closing frames whose gripper's position is told rightly, and of all frames; true ones.
    """
    pools = _frames(cache)
    unseen = _unseen(cache)
    held = [pool[unseen[pool[:, 0]]] for pool in pools]
    known = [pool[~unseen[pool[:, 0]]] for pool in pools]
    batch = _BATCH // 2 if own is not None and len(own.moment) else _BATCH
    counts = [round(share * batch) for share in _SHARES]
    pairs = [(pool, count) for pool, count in zip(known, counts, strict=True) if len(pool)]
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
        loss = F.cross_entropy(told.grip, spread(next_grip)) + _EXPLAIN * _unexplained(model, moments, told)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.contact.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    found = {}
    for name, rows in zip(("closing", "low", "other"), held, strict=True):
        asked = rows[:: max(1, len(rows) // 2000)]
        if len(asked):
            with torch.no_grad():
                parts = [_tell(model, _true_moments(cache, some)) for some in asked.split(256)]
            apart = torch.cat([(likeliest(contact.grip) - true).abs()[:, 0] for contact, true in parts])
            found[f"grip_{name}_right"] = round(float((apart < _AGREES).float().mean()), 4)
    return found


@torch.no_grad()
def imagined_closings(model: WorldModel, cache: FrameCache, generator: torch.Generator, rollouts: int) -> Closings:
    """Frames that the model draws itself, in so many rollouts of episodes in which a gripper closes; it is told where
    the gripper truly is, so that what it draws stays what truly happened.
    """
    closing = _frames(cache)[0]
    closing = closing[~_unseen(cache)[closing[:, 0]]]
    found: list[Closings] = []
    tokens = model.instruction.tokens(cache.instructions)
    closes = torch.zeros(len(cache.kinematics), dtype=torch.bool)  # by step
    closes[cache.step(*closing.unbind(1))] = True
    episodes, frames_in = closing.unbind(1)
    ends = torch.zeros(len(cache), dtype=torch.long).scatter_reduce(0, episodes, frames_in + 1, reduce="amax")
    batches = -(-rollouts // _ROLLOUTS) if len(closing) else 0
    for _ in tqdm(range(batches), desc="contact on own rollouts", disable=None):
        episode = closing[torch.randint(len(closing), (_ROLLOUTS,), generator=generator), 0].unique()
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
            here = closes[cache.step(episode, index)]
            some = torch.rand(len(episode), generator=generator) < _SOME
            rows = (here | some).nonzero()[:, 0]
            frames = last[rows].to(torch.bfloat16)
            found.append(Closings(frames, kinematics[rows], episode[rows], index[rows], here[rows]))
            noise = torch.randn(last.shape, generator=generator)
            with torch.autocast("cpu", torch.bfloat16, enabled=has_bfloat16()):
                drawn = model(noise, torch.ones(len(episode)), last, previous, kinematics, actions, context, true)
            previous, last, kinematics = last, drawn.frame.clamp(-1, 1), drawn.kinematics
    if not found:
        nothing = torch.zeros(0, dtype=torch.long)
        return Closings(cache.frame(nothing, nothing), cache.kinematics[:0], nothing, nothing, nothing.bool())
    return Closings(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def _draw(own: Closings, count: int, generator: torch.Generator) -> Tensor:
    """Rows of `own`: closing ones and others, where there are any."""
    pools = [rows.nonzero()[:, 0] for rows in (own.closing, ~own.closing)]
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


def _own_moments(cache: FrameCache, own: Closings, rows: Tensor) -> Moments:
    return _moments(cache, own.episode[rows], own.moment[rows], own.last[rows].float(), own.kinematics[rows])


def _moments(cache: FrameCache, episode: Tensor, index: Tensor, last: Tensor, now: Tensor) -> Moments:
    start, after = torch.zeros_like(index), index + 1
    first_k, next_k = (cache.kinematics[cache.step(episode, at)] for at in (start, after))
    first, following = cache.frame(episode, start), cache.frame(episode, after)
    return Moments(last, first, following, now, first_k, next_k, cache.chunk(episode, index), cache.calibrated[episode])


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


def _unexplained(model: WorldModel, moments: Moments, told: Contact) -> Tensor:
    """Negative log-likelihood of the next pictures around the fingertips, mean over their places; a scalar."""
    contact, patch_size = model.contact, int(model.config["patch"])
    last, after = (composition.images(composition.views(frame), patch_size) for frame in (moments.last, moments.next))
    now, next_k = Kinematics.unpack(moments.kinematics), Kinematics.unpack(moments.next_kinematics)
    spots = told.below.spots(contact.get_buffer("cells").expand(len(last), -1, -1))
    here, before = (F.pad(some, (0, 1), value=MIDDLE) for some in (spots, told.before(spots)))
    mask = told.mask.flatten(1)
    other = torch.full_like(mask, math.log(_ELSE / 8))  # colours lie in a cube of volume 8
    likelihood = torch.zeros(())
    for view in range(VIEWS):
        true, seen_then = contact.look(view, here, after[:, view], next_k)
        still, seen_now = contact.look(view, here, last[:, view], now)
        moved, _ = contact.look(view, before, last[:, view], now)
        causes = [F.logsigmoid(mask) + _density(moved, true), F.logsigmoid(-mask) + _density(still, true), other]
        known = seen_then & seen_now & (moments.calibrated != 0)[:, None]
        likelihood = likelihood + (torch.logsumexp(torch.stack(causes), 0) * known).mean()
    return -likelihood / VIEWS


def _density(found: Tensor, true: Tensor) -> Tensor:
    """Log-density (B, N) of colours (B, 3, N) around those found."""
    return -(found - true).square().sum(1) / (2 * _SPREAD**2) - 3 * math.log(_SPREAD * math.sqrt(2 * math.pi))


def _unseen(cache: FrameCache) -> Tensor:
    """(E,) bool: a tenth of the episodes, and their mirror images (`mirror.with_mirror_images` keeps the order)."""
    number = torch.arange(len(cache))
    number[cache.calibrated < 0] = number[cache.calibrated > 0][: int((cache.calibrated < 0).sum())]
    return number % _HELD_OUT == _HELD_OUT - 1


def _frames(cache: FrameCache) -> tuple[Tensor, Tensor, Tensor]:
    """Episode and index (N, 2) of the frames after which a gripper told to close moves or has just stopped, of
    others in which the hand is low, and of all others that have a next one.
    """
    episode = torch.repeat_interleave(torch.arange(len(cache)), (cache.frame_count - 1).clamp(min=0))
    first = torch.cumsum((cache.frame_count - 1).clamp(min=0), 0) - (cache.frame_count - 1).clamp(min=0)
    index = torch.arange(len(episode)) - first[episode]
    step = cache.step(episode, index)
    now = cache.kinematics[step, GRIPPER]
    told = cache.chunk(episode, index)[:, :, 6].amax(1) > 0.5
    moving = (cache.kinematics[step + cache.actions_per_frame, GRIPPER] - now).abs() > 0.02
    closing = told & moving
    heights = [Kinematics.unpack(part).state()[:, 2] for part in cache.kinematics[step].split(1 << 14)]
    low = (torch.cat(heights) < _LOW if heights else closing) & ~closing & (cache.calibrated[episode] != 0)
    rows = torch.stack([episode, index], 1)
    return rows[closing], rows[low], rows[~closing & ~low]
