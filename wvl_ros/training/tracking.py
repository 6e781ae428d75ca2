"""Fits the servo's lag behind its commands, first one step at a time, then unrolled over its own results."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from wvl_ros.training.frame_cache import FrameCache
from wvl_ros.world_model.kinematics import Kinematics, matrix_to_rotvec
from wvl_ros.world_model.tracking import Tracking, fit_linear

_SCALE = 200.0  # an error of 5 mm or 5 mrad counts as 1
_FINE = 0.06  # errors up to here count by their square: where something stopped the hand, that is not the servo's doing
_STAGES = ((1, 8000, 1024, 3e-3), (6, 2000, 256, 1e-3))  # unroll, updates, batch, learning rate


def fit_tracking(tracking: Tracking, cache: FrameCache, generator: torch.Generator, effort: float = 1.0) -> None:
    """Fits the calibrated rig's servo on its episodes, the others' linear one on theirs; `effort` scales updates."""
    counts = cache.step_count - 1  # actions
    for calibrated in (True, False):
        _fit_line(tracking, cache, generator, calibrated)
    pool = torch.nonzero((cache.calibrated > 0) & (counts > 0))[:, 0]
    lengths = counts[pool]
    if not len(pool):
        return
    bar = tqdm(
        total=sum(max(1, int(s[1] * effort)) for s in _STAGES), desc="fitting the servo", disable=None, leave=False
    )
    for unroll, planned, batch, rate in _STAGES:
        long_enough = lengths >= unroll
        if not bool(long_enough.any()):
            continue
        updates = max(1, int(planned * effort))
        optimizer = torch.optim.AdamW(tracking.parameters(), rate, weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, max(2, updates))
        for _ in range(updates):
            rows = _draw(pool[long_enough], lengths[long_enough], cache, batch, unroll, generator)
            k = Kinematics.unpack(cache.kinematics[rows])
            loss, ones = torch.zeros(()), torch.ones(batch)
            for step in range(unroll):
                k = tracking(k, cache.actions[rows + step], ones)
                loss = loss + _error(k, Kinematics.unpack(cache.kinematics[rows + step + 1]))
            optimizer.zero_grad()
            (loss / unroll).backward()
            torch.nn.utils.clip_grad_norm_(tracking.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            bar.update()
    tracking.zero_grad(set_to_none=True)  # else the network's gradient clipping would count them
    bar.close()


def fit_others(tracking: Tracking, cache: FrameCache, generator: torch.Generator) -> None:
    """Fits the linear servo of other rigs than the calibrated one, whose stays as it is, when there are episodes."""
    _fit_line(tracking, cache, generator, calibrated=False)


def _fit_line(tracking: Tracking, cache: FrameCache, generator: torch.Generator, calibrated: bool) -> None:
    counts = cache.step_count - 1
    starts = torch.nonzero((cache.calibrated == float(calibrated)) & (counts > 0))[:, 0]
    if not len(starts):
        return
    rows = _draw(starts, counts[starts], cache, 30_000, 1, generator)
    before, after = (Kinematics.unpack(cache.kinematics[r]) for r in (rows, rows + 1))
    fit_linear(tracking, before, cache.actions[rows], after, calibrated)


@torch.no_grad()
def tracking_errors(
    tracking: Tracking, cache: FrameCache, steps: tuple[int, ...] = (3, 24, 57)
) -> dict[str, dict[str, float]]:
    """Open-loop flange error in mm (mean, median) after so many control steps from the start, of the fit and of the
    bare command.
    """
    result = {}
    counts = (cache.frame_count - 1) * cache.actions_per_frame
    for n in steps:
        rows = cache.step_start[counts >= n]
        if not len(rows):
            continue
        k = Kinematics.unpack(cache.kinematics[rows])
        calibrated = cache.calibrated[counts >= n]
        for step in range(n):
            k = tracking(k, cache.actions[rows + step], calibrated)
        true = Kinematics.unpack(cache.kinematics[rows + n]).position
        fit, bare = ((p - true).norm(dim=1).numpy() * 1000 for p in (k.position, k.commanded_position))
        result[str(n)] = {
            "mean_mm": round(float(fit.mean()), 2),
            "median_mm": round(float(np.median(fit)), 2),
            "command_mean_mm": round(float(bare.mean()), 2),
        }
    return result


def _draw(
    pool: Tensor, lengths: Tensor, cache: FrameCache, count: int, unroll: int, generator: torch.Generator
) -> Tensor:
    chosen = torch.randint(len(pool), (count,), generator=generator)
    offset = torch.rand(count, generator=generator) * (lengths[chosen] - unroll + 1)
    return cache.step_start[pool[chosen]] + torch.minimum(offset.long(), lengths[chosen] - unroll)


def _error(mine: Kinematics, true: Kinematics) -> Tensor:
    turn = matrix_to_rotvec(mine.rotation @ true.rotation.transpose(1, 2))
    gap = torch.cat([mine.position - true.position, turn], 1) * _SCALE
    grip = (mine.gripper - true.gripper) / 0.1
    closing = F.smooth_l1_loss(grip, torch.zeros_like(grip), beta=_FINE)
    return F.smooth_l1_loss(gap, torch.zeros_like(gap), beta=_FINE) + 0.3 * closing
