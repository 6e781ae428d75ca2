"""The reward head as a separate classifier of frames: fitted to true ones, after the network; see `joint_reward`."""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F

from wvl_ros.training.frame_cache import FrameCache
from wvl_ros.training.misnaming import Wordings
from wvl_ros.world_model import composition
from wvl_ros.world_model.kinematics import Kinematics
from wvl_ros.world_model.model import Evidence, WorldModel

_BATCH, _RATE = 48, 1e-3


def fit_classifier(
    model: WorldModel,
    cache: FrameCache,
    names: Wordings,
    *,
    seconds: float | None = None,
    updates: int | None = None,
    generator: torch.Generator,
) -> dict[str, float]:
    """Fits what only the reward depends on, on true frames, half of them success states, until time or updates end.

    Args:
        names: what the episodes are told by.

    Returns:
        The number of updates and the last loss, smoothed.
    """
    trained = model.judging()
    for parameter in trained:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(trained, _RATE, weight_decay=0.01)
    pools = _frames(cache)
    scale = model.get_buffer("state_scale")
    began, step, smooth = time.monotonic(), 0, 0.7
    while (updates is None or step < updates) and (seconds is None or time.monotonic() - began < seconds):
        rows = torch.cat([p[torch.randint(len(p), (_BATCH // len(pools),), generator=generator)] for p in pools])
        episode, index = rows.unbind(1)
        frame, first = cache.frame(episode, index), cache.frame(episode, torch.zeros_like(index))
        step_before, step_now = cache.step(episode, index - 1), cache.step(episode, index)
        before, now = (Kinematics.unpack(cache.kinematics[r]).state() for r in (step_before, step_now))
        wording = names.draw(episode, generator)
        tokens = model.instruction.tokens(names.told(episode, wording))
        images = composition.views(frame).flatten(0, 1).permute(0, 3, 1, 2)
        nothing = images.new_zeros(len(images), model.to_frame.in_channels, *images.shape[2:])
        pooled = images.new_zeros(len(rows), model.reward_head.pooled)
        arm = torch.cat([before, now, (now - before) / scale], 1)
        logit = model.judge(Evidence(images, nothing, pooled, arm), first, tokens)
        loss = F.binary_cross_entropy_with_logits(logit, cache.rewards[step_now] * (wording == 0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        smooth = 0.95 * smooth + 0.05 * float(loss.detach())
    return {"updates": step, "loss": round(smooth, 5)}


def _frames(cache: FrameCache) -> list[torch.Tensor]:
    """Two lists (N, 2) of episode and frame index: success states and all others, of labelled episodes."""
    found: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
    for episode in torch.nonzero((cache.labelled > 0) & (cache.frame_count > 1))[:, 0].tolist():
        index = torch.arange(1, int(cache.frame_count[episode]))
        rewards = cache.rewards[cache.step(torch.full_like(index, episode), index)]
        for i, reward in zip(index.tolist(), rewards.tolist(), strict=True):
            found[reward > 0.5].append((episode, i))
    return [torch.tensor(rows) for rows in found.values() if rows]
