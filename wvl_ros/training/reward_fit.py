"""Fits the reward head on the model's own rollouts, the network as it is: what it will be asked about in use.

A head that is right on frames after true ones can be wrong after frames that the model drew itself. So, at the end of a
run, whole training episodes are imagined from their first frame by their recorded actions, and the head learns what
truly happened from what the model sees then. Some successes are imagined, from their start, by an instruction that
names something else, and are none.
"""

from __future__ import annotations

import math
import time

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from wvl_ros.training.frame_cache import FrameCache
from wvl_ros.training.misnaming import Wordings
from wvl_ros.world_model.model import WorldModel
from wvl_ros.world_model.rollout import Rollouts

_BATCH = 48  # rollouts at a time
_SHARES = {"success": 0.4, "near_success": 0.4, "failure": 0.2}  # of the outcomes among them
_EARLY = 0.25  # share of the frames before a rollout's last `_LATE` that are learned from
_LATE = 8
_RATE = 3e-4


def fit_reward(
    model: WorldModel,
    cache: FrameCache,
    names: Wordings,
    *,
    seconds: float | None = None,
    updates: int | None = None,
    generator: torch.Generator,
) -> dict[str, float]:
    """Trains `model.reward_head` on own rollouts of episodes of `cache`, until the time or the updates are spent.

    Args:
        names: what the episodes are told by.

    Returns:
        Updates, rollouts, and the mean loss of the first and of the last tenth of them.
    """
    if seconds is None and updates is None:
        raise ValueError("fit_reward needs a limit: seconds or updates.")
    draw = _weights(cache)
    training = model.training
    model.eval()
    trained = list(model.reward_head.parameters())
    asked = [p.requires_grad for p in trained]
    for p in trained:
        p.requires_grad_(True)
    optimizer = torch.optim.AdamW(trained, _RATE, weight_decay=0.01)
    losses: list[float] = []
    begun, rollouts = time.perf_counter(), 0
    bar = tqdm(
        desc="reward head on own rollouts", total=1.0, bar_format="{l_bar}{bar}| {elapsed}<{remaining}", disable=None
    )

    def done() -> float:
        by_time = (time.perf_counter() - begun) / seconds if seconds else 0.0
        by_updates = len(losses) / updates if updates else 0.0
        return min(1.0, max(by_time, by_updates))

    while done() < 1:
        episodes = torch.multinomial(draw, _BATCH, replacement=True, generator=generator)
        lengths = cache.frame_count[episodes] - 1
        imagined = Rollouts(model, stop_at_success=False)
        start = torch.zeros_like(episodes)
        seeds = torch.randint(2**31, (_BATCH,), generator=generator).tolist()
        wording = names.draw(episodes, generator)
        words = names.told(episodes, wording)
        kinematics = cache.kinematics[cache.step(episodes, start)]
        first = cache.frame(episodes, start)
        imagined.start(first, kinematics, words, cache.calibrated[episodes], seeds)
        rollouts += _BATCH
        for t in range(int(lengths.max())):
            imagined.stop(lengths <= t)
            index = torch.minimum(start + t, (lengths - 1).clamp(min=0))
            learned = (lengths - t <= _LATE) | (torch.rand(_BATCH, generator=generator) < _EARLY)
            learned &= imagined.active & cache.labelled[episodes].bool()
            for group in optimizer.param_groups:
                group["lr"] = _RATE * 0.5 * (1 + math.cos(math.pi * done()))
            imagined.advance(cache.chunk(episodes, index))
            rows = learned[imagined.drawn].nonzero()[:, 0]
            if len(rows):
                rewards = cache.rewards[cache.step(episodes, index + 1)] * (wording == 0)
                truth = rewards[imagined.drawn][rows]
                losses.append(_learn(model, imagined, rows, first[imagined.drawn][rows], truth, optimizer))
            bar.update(done() - bar.n)
            if done() >= 1:
                break
    bar.close()
    for p, grad in zip(trained, asked, strict=True):
        p.requires_grad_(grad)
    model.train(training)
    tenth = max(1, len(losses) // 10)
    early, late = (round(sum(part) / max(1, len(part)), 4) for part in (losses[:tenth], losses[-tenth:]))
    return {"updates": len(losses), "rollouts": rollouts, "first_loss": early, "last_loss": late}


def _learn(
    model: WorldModel,
    imagined: Rollouts,
    rows: Tensor,
    first: Tensor,
    truth: Tensor,
    optimizer: torch.optim.Optimizer,
) -> float:
    assert imagined.evidence is not None
    evidence = imagined.evidence.select(rows)
    with torch.autocast("cpu", torch.bfloat16, enabled=evidence.features.dtype == torch.bfloat16):
        logits = model.judge(evidence, first)
    loss = F.binary_cross_entropy_with_logits(logits.float(), truth)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.reward_head.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach())


def _weights(cache: FrameCache) -> Tensor:
    """(E,) how often an episode is drawn: outcomes by `_SHARES`, those of the calibrated rig before others."""
    weights = torch.zeros(len(cache), dtype=torch.double)
    usable = (cache.frame_count > 1) & cache.labelled.bool()
    for outcome, share in _SHARES.items():
        rows = torch.tensor([kind == outcome for kind in cache.outcomes]) & usable
        if bool(rows.any()):
            weights[rows] = share / rows.sum()
    return weights if bool(weights.any()) else usable.double()
