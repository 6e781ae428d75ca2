"""Fits the reward head on the model's own rollouts, the network as it is: what it will be asked about in use.

A head that is right on frames after true ones can be wrong after frames that the model drew itself. So, at the end of a
run, whole training episodes are imagined from their first frame by their recorded actions, and the head learns what
truly happened from what the model sees then. What is drawn does not depend on the instruction; so successes are judged
by another one as well, that names something else, and by it they are none.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from wvl_ros.training.frame_cache import FrameCache
from wvl_ros.training.misnaming import Wordings
from wvl_ros.world_model.model import Evidence, WorldModel
from wvl_ros.world_model.rollout import Rollouts, has_bfloat16

_BATCH = 48  # rollouts at a time
_SHARES = {"success": 0.4, "near_success": 0.4, "failure": 0.2}  # of the outcomes among them
_EARLY = 0.25  # share of the frames before a rollout's last `_LATE` that are learned from
_LATE = 8
_ROWS, _KEPT = 96, 12_000  # frames an update, and of the latest rollouts that they are drawn from (170 KB each)
_REPEATED = 4.0  # times that a frame is learned from, on average
_RATE = 5e-4


class Seen(NamedTuple):
    """Frames that the model drew: their `evidence`, its large parts in bfloat16, `episode` (N,), and what is `true` of
    them (N,), 0 or 1, by the episode's own instruction.
    """

    evidence: Evidence
    episode: Tensor
    true: Tensor

    def select(self, rows: Tensor) -> Seen:
        """Some of the frames (n,)."""
        return Seen(self.evidence.select(rows), self.episode[rows], self.true[rows])


def _together(parts: Sequence[Seen]) -> Seen:
    evidence = zip(*(part.evidence for part in parts), strict=True)
    episode, true = (torch.cat([getattr(part, name) for part in parts]) for name in ("episode", "true"))
    return Seen(Evidence(*(torch.cat(some) for some in evidence)), episode, true)


def _draw(lately: Sequence[Seen], count: int, generator: torch.Generator) -> Seen:
    """So many of all these frames."""
    ends = torch.tensor([len(part.true) for part in lately]).cumsum(0)
    chosen = torch.randint(int(ends[-1]), (count,), generator=generator)
    which = torch.bucketize(chosen, ends, right=True)
    starts = ends - torch.tensor([len(part.true) for part in lately])
    return _together([lately[i].select(chosen[which == i] - starts[i]) for i in which.unique().tolist()])


def fit_reward(
    model: WorldModel,
    cache: FrameCache,
    names: Wordings,
    *,
    seconds: float | None = None,
    updates: int | None = None,
    generator: torch.Generator,
) -> dict[str, float]:
    """Trains what only the reward depends on, until the time or the updates are spent: rollouts of episodes of `cache`
    and updates on all that they showed lately, in turns.

    Args:
        names: what the episodes are told by.

    Returns:
        Updates, rollouts, and the mean loss of the first and of the last tenth of them.
    """
    if seconds is None and updates is None:
        raise ValueError("fit_reward needs a limit: seconds or updates.")
    draw = _weights(cache)
    if not bool(draw.any()):
        return {}
    training = model.training
    model.eval()
    trained = model.judging()
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

    lately: deque[Seen] = deque()
    while done() < 1:
        episodes = torch.multinomial(draw, _BATCH, replacement=True, generator=generator)
        fresh = _imagine(model, cache, episodes, generator)
        rollouts += _BATCH
        if fresh is None:
            continue
        lately.append(fresh)
        while sum(len(part.true) for part in lately) - len(lately[0].true) > _KEPT:
            lately.popleft()
        for _ in range(max(1, round(_REPEATED * len(fresh.true) / _ROWS))):
            for group in optimizer.param_groups:
                group["lr"] = _RATE * 0.5 * (1 + math.cos(math.pi * done()))
            losses.append(_learn(model, cache, names, _draw(lately, _ROWS, generator), optimizer, generator))
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


def _imagine(model: WorldModel, cache: FrameCache, episodes: Tensor, generator: torch.Generator) -> Seen | None:
    """Rollouts of episodes (B,) by their recorded actions: their last frames and some of the others."""
    lengths = cache.frame_count[episodes] - 1
    imagined = Rollouts(model, stop_at_success=False)
    start = torch.zeros_like(episodes)
    seeds = torch.randint(2**31, (len(episodes),), generator=generator).tolist()
    kinematics = cache.kinematics[cache.step(episodes, start)]
    words = [cache.instructions[e] for e in episodes.tolist()]
    imagined.start(cache.frame(episodes, start), kinematics, words, cache.calibrated[episodes], seeds)
    seen: list[Seen] = []
    for t in range(int(lengths.max())):
        imagined.stop(lengths <= t)
        index = torch.minimum(start + t, (lengths - 1).clamp(min=0))
        learned = (lengths - t <= _LATE) | (torch.rand(len(episodes), generator=generator) < _EARLY)
        learned &= imagined.active & cache.labelled[episodes].bool()
        imagined.advance(cache.chunk(episodes, index))
        rows = learned[imagined.drawn].nonzero()[:, 0]
        if len(rows):
            assert imagined.evidence is not None
            evidence = imagined.evidence.select(rows)
            frame, features = (part.to(torch.bfloat16) for part in (evidence.frame, evidence.features))
            evidence = evidence._replace(frame=frame, features=features)
            episode = episodes[imagined.drawn][rows]
            true = cache.rewards[cache.step(episode, index[imagined.drawn][rows] + 1)]
            seen.append(Seen(evidence, episode, true))
    return _together(seen) if seen else None


def _learn(
    model: WorldModel,
    cache: FrameCache,
    names: Wordings,
    seen: Seen,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
) -> float:
    """One update on some frames; a share of the success states is judged once more, by another name."""
    wording = names.draw(seen.episode, generator)
    again = ((wording > 0) & (seen.true > 0.5)).nonzero()[:, 0]
    rows = torch.cat([torch.arange(len(seen.true)), again])
    wording = torch.cat([torch.zeros_like(wording), wording[again]])
    whole = seen.select(rows)
    first = cache.frame(whole.episode, torch.zeros_like(whole.episode))
    tokens = model.instruction.tokens(names.told(whole.episode, wording))
    exact = not has_bfloat16()
    evidence = Evidence(*(part.float() for part in whole.evidence)) if exact else whole.evidence
    with torch.autocast("cpu", torch.bfloat16, enabled=not exact):
        logits = model.judge(evidence, first, tokens)
    loss = F.binary_cross_entropy_with_logits(logits.float(), whole.true * (wording == 0))
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.judging(), 1.0)
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
