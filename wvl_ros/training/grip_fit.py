"""Fits where the gripper stops by what the wrist sees, on frames in which it closes and on others."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from wvl_ros.training.frame_cache import FrameCache
from wvl_ros.world_model import composition
from wvl_ros.world_model.grip import likeliest, spread
from wvl_ros.world_model.kinematics import GRIPPER, Kinematics
from wvl_ros.world_model.model import WorldModel

_BATCH, _RATE = 64, 1e-3
_SHARES = {"closing": 0.5, "other": 0.5}  # of the frames
_MOVED = 0.02  # of the gripper's position in a frame
_NOISE = 0.06  # on the pictures of half of them: imagined ones are not as clean
_AGREES = 0.1  # how near the told position must be to the true one


def fit_grip(model: WorldModel, cache: FrameCache, generator: torch.Generator, updates: int) -> dict[str, float]:
    """Trains `model.grip`.

    Returns:
        How often it is right about frames of unseen episodes, by kind: `grip_KIND_right`.
    """
    pools, unseen = frames_by_kind(cache), cache.held_out
    known = [(pool[~unseen[pool[:, 0]]], _SHARES[name]) for name, pool in pools.items()]
    known = [(pool, share) for pool, share in known if len(pool)]
    if updates < 1 or not known:
        return {}
    optimizer = torch.optim.AdamW(model.grip.parameters(), _RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    whole = sum(share for _, share in known)
    for _ in tqdm(range(updates), desc="grip", disable=None):
        rows = torch.cat(
            [
                pool[torch.randint(len(pool), (round(share / whole * _BATCH),), generator=generator)]
                for pool, share in known
            ]
        )
        told, true = _tell(model, cache, rows, generator)
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(told, spread(true)).backward()
        torch.nn.utils.clip_grad_norm_(model.grip.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    found = {}
    for name, pool in pools.items():
        held = pool[unseen[pool[:, 0]]]
        if len(held):
            with torch.no_grad():
                told, true = _tell(model, cache, held[:: max(1, len(held) // 2000)])
            found[f"grip_{name}_right"] = round(float(((likeliest(told) - true).abs() < _AGREES).float().mean()), 4)
    return found


def frames_by_kind(cache: FrameCache) -> dict[str, Tensor]:
    """Episode and index (N, 2) of all frames that have a next one: 'closing', after which a gripper told to close moves
    or has just stopped; 'other'.
    """
    counts = (cache.frame_count - 1).clamp(min=0)
    episode = torch.repeat_interleave(torch.arange(len(cache)), counts)
    index = torch.arange(len(episode)) - (counts.cumsum(0) - counts)[episode]
    step = cache.step(episode, index)
    told = cache.chunk(episode, index)[:, :, 6].amax(1) > 0.5
    gap = cache.kinematics[step + cache.actions_per_frame, GRIPPER] - cache.kinematics[step, GRIPPER]
    closing = told & (gap.abs() > _MOVED)
    rows = torch.stack([episode, index], 1)
    return {"closing": rows[closing], "other": rows[~closing]}


def _tell(
    model: WorldModel, cache: FrameCache, rows: Tensor, noise: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """What the model tells of frames (B, 26), and the gripper's true positions (B, 1) after them."""
    episode, index = rows.unbind(1)
    step = cache.step(episode, index)
    wrist = composition.views(cache.frame(episode, index))[:, 2]
    if noise is not None:
        amount = _NOISE * torch.rand(len(rows), generator=noise) * (torch.rand(len(rows), generator=noise) < 0.5)
        wrist = wrist + amount[:, None, None, None] * torch.randn(wrist.shape, generator=noise)
    with torch.no_grad():
        packed, actions = cache.kinematics[step], cache.chunk(episode, index)
        then, _ = model.move(packed, actions, cache.calibrated[episode])
    told = model.grip(wrist, Kinematics.unpack(packed), then, actions[:, :, 6])
    return told, cache.kinematics[step + cache.actions_per_frame, GRIPPER : GRIPPER + 1]
