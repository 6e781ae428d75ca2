"""Fits what the gripper closes on, on true frames, before the network is trained.

The few frames in which a gripper closes decide most manipulation; a run that meets them once in twenty frames learns
them slowly. This part is small and needs nothing of the network, so it sees them thousands of times first.
"""

from __future__ import annotations

import torch
from torch import Tensor
from tqdm import tqdm

from wvl_ros.training.frame_cache import FrameCache
from wvl_ros.training.world_model_losses import gripper_loss
from wvl_ros.world_model import composition
from wvl_ros.world_model.grip import likeliest
from wvl_ros.world_model.kinematics import GRIPPER, Kinematics
from wvl_ros.world_model.model import WorldModel

_BATCH, _RATE = 64, 1e-3
_CLOSING = 0.6  # share of frames in which the gripper has been told to close and has not stopped yet
_HELD_OUT = 10  # every so many an episode is left for the report
_NOISE = 0.06  # on the pictures of half of them: imagined ones are not as clean
_AGREES = 0.1  # how near the told position must be to the true one


def fit_grip(model: WorldModel, cache: FrameCache, generator: torch.Generator, updates: int) -> dict[str, float]:
    """Trains `model.grip`; the share of unseen closing frames whose position is told rightly, and of all frames."""
    closing, others = _frames(cache)
    unseen = _unseen(cache)
    held = [unseen[rows[:, 0]] for rows in (closing, others)]
    pools = [rows[~mask] for rows, mask in zip((closing, others), held, strict=True)]
    counts = [round(_CLOSING * _BATCH), _BATCH - round(_CLOSING * _BATCH)]
    pairs = [(pool, count) for pool, count in zip(pools, counts, strict=True) if len(pool)]
    if updates < 1 or not pairs:
        return {}
    grip = model.grip
    optimizer = torch.optim.AdamW(grip.parameters(), _RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    for _ in tqdm(range(updates), desc="grip", disable=None):
        rows = torch.cat([pool[torch.randint(len(pool), (count,), generator=generator)] for pool, count in pairs])
        logits, true = _tell(model, cache, rows, generator)
        loss = gripper_loss(logits, true)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(grip.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    found = {}
    for name, rows, mask in zip(("closing", "all"), (closing, others), held, strict=True):
        asked = rows[mask][:: max(1, int(mask.sum()) // 2000)]
        if len(asked):
            with torch.no_grad():
                told = [_tell(model, cache, some, None) for some in asked.split(256)]
            apart = torch.cat([(likeliest(logits) - true).abs()[:, 0] for logits, true in told])
            found[f"grip_{name}_right"] = round(float((apart < _AGREES).float().mean()), 4)
    return found


def _tell(
    model: WorldModel, cache: FrameCache, rows: Tensor, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Logits and true positions (B, 1) after frames `rows` (B, 2) of episode and index."""
    episode, index = rows.unbind(1)
    last, calibrated = cache.frame(episode, index), cache.calibrated[episode]
    if generator is not None:
        amount = (
            _NOISE * torch.rand(len(rows), generator=generator) * (torch.rand(len(rows), generator=generator) < 0.5)
        )
        last = last + amount[:, None, None, None] * torch.randn(last.shape, generator=generator)
    kinematics, actions = cache.kinematics[cache.step(episode, index)], cache.chunk(episode, index)
    with torch.no_grad():
        now, (then, _) = Kinematics.unpack(kinematics), model.move(kinematics, actions, calibrated)
        maps = model.maps(then, calibrated)
    logits = model.grip(composition.views(last), maps, now, then, actions[:, :, 6])
    return logits, cache.kinematics[cache.step(episode, index + 1), GRIPPER : GRIPPER + 1]


def _unseen(cache: FrameCache) -> Tensor:
    """(E,) bool: a tenth of the episodes, and their mirror images (`mirror.with_mirror_images` keeps the order)."""
    number = torch.arange(len(cache))
    number[cache.calibrated < 0] = number[cache.calibrated > 0][: int((cache.calibrated < 0).sum())]
    return number % _HELD_OUT == _HELD_OUT - 1


def _frames(cache: FrameCache) -> tuple[Tensor, Tensor]:
    """Episode and index (N, 2) of the frames after which a gripper told to close moves or has just stopped, and of all
    others that have a next one.
    """
    episode = torch.repeat_interleave(torch.arange(len(cache)), (cache.frame_count - 1).clamp(min=0))
    first = torch.cumsum((cache.frame_count - 1).clamp(min=0), 0) - (cache.frame_count - 1).clamp(min=0)
    index = torch.arange(len(episode)) - first[episode]
    step = cache.step(episode, index)
    now = cache.kinematics[step, GRIPPER]
    told = cache.chunk(episode, index)[:, :, 6].amax(1) > 0.5
    moving = (cache.kinematics[step + cache.actions_per_frame, GRIPPER] - now).abs() > 0.02
    closing = told & moving
    rows = torch.stack([episode, index], 1)
    return rows[closing], rows[~closing]
