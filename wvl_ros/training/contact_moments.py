"""Frames with what comes next, by kind: what contact is fitted to."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from wvl_ros.training.frame_cache import FrameCache
from wvl_ros.training.things import Things
from wvl_ros.world_model.contact import CELL, CELLS, Footprint
from wvl_ros.world_model.kinematics import GRIPPER, Kinematics

STIRRED = 0.001  # m in a frame: what moved less stands still
_LOW = 0.07  # m above the table: fingertips that may touch something
_LIFTED = 0.012  # m: what is higher above the table is held


class Moments(NamedTuple):
    """Frames with what comes next: `last`, `first`, `next` (N, C, G, G), `kinematics`, `first_kinematics`,
    `next_kinematics` (N, 39) packed, `actions` (N, K, 7), `calibrated` (N,), and where the `things` (N, 40) packed were
    and are `next_things`.
    """

    last: Tensor
    first: Tensor
    next: Tensor
    kinematics: Tensor
    first_kinematics: Tensor
    next_kinematics: Tensor
    actions: Tensor
    calibrated: Tensor
    things: Tensor
    next_things: Tensor


def true_moments(cache: FrameCache, rows: Tensor) -> Moments:
    """Those at `rows` (N, 2) of episode and index."""
    episode, index = rows.unbind(1)
    now = cache.kinematics[cache.step(episode, index)]
    return moments_at(cache, episode, index, cache.frame(episode, index), now)


def moments_at(cache: FrameCache, episode: Tensor, index: Tensor, last: Tensor, now: Tensor) -> Moments:
    start, after = torch.zeros_like(index), index + 1
    first_k, next_k = (cache.kinematics[cache.step(episode, at)] for at in (start, after))
    first, following = cache.frame(episode, start), cache.frame(episode, after)
    things, next_things = (cache.things[cache.step(episode, at)] for at in (index, after))
    calibrated, actions = cache.calibrated[episode], cache.chunk(episode, index)
    return Moments(last, first, following, now, first_k, next_k, actions, calibrated, things, next_things)


def reachable(below: Footprint, before: Things, after: Things) -> Tensor:
    """(B, 8) bool: which things lie around the fingertips of a low hand and are not lifted."""
    inside = below.local(after.place).abs().amax(2) < CELLS * CELL / 2
    return inside & (below.height < _LOW)[:, None] & (before.height < before.half + _LIFTED)


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
    near_table, stirs = [], []
    for some in torch.arange(len(step)).split(1 << 14):
        below = Footprint.of(Kinematics.unpack(cache.kinematics[after[some]]))
        then, now = (Things.unpack(cache.things[at[some]]) for at in (after, step))
        gap = (then.place - now.place).norm(dim=2)
        near_table.append((below.height < _LOW) & (cache.calibrated[episode[some]] != 0))
        stirs.append(near_table[-1] & (reachable(below, now, then) & (gap > STIRRED)).any(1))
    low, moving = (torch.cat([*parts, closing[:0]]) for parts in (near_table, stirs))
    kinds = {"closing": closing, "moving": moving & ~closing, "low": low & ~moving & ~closing}
    kinds["other"] = ~(closing | moving | low)
    rows = torch.stack([episode, index], 1)
    return {name: rows[chosen] for name, chosen in kinds.items()}
