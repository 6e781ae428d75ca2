"""Fits outcome networks to true frames: is this frame a success state, by what the instruction names?"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from wvl_ros.training.frame_cache import FrameCache
from wvl_ros.training.misnaming import Misnaming, Wordings
from wvl_ros.world_model.outcome import OutcomeNetwork
from wvl_ros.world_model.rollout import has_bfloat16

LATE = 6  # frames at the end of a near-success that are looked at most
_RATE, _PEAK = 1e-3, 2e-3
_MISNAMED = 1.0  # all success states are told once more, by another name


class FramePools:
    """Frames of labelled episodes, by kind: `episode`, `index`, `success` (F,) and the rows of each pool.

    A quarter of a batch are success states, a quarter late frames of near-successes, a quarter lies within three frames
    of a moment at which success begins or ends, a quarter are any frames.
    """

    def __init__(self, cache: FrameCache) -> None:
        counts = torch.where(cache.labelled.bool(), cache.frame_count - 1, 0).clamp(min=0)
        self.episode = torch.repeat_interleave(torch.arange(len(counts)), counts)
        self.index = torch.arange(len(self.episode)) - (counts.cumsum(0) - counts)[self.episode] + 1
        self.success = cache.rewards[cache.step(self.episode, self.index)] > 0.5
        near = torch.tensor([outcome == "near_success" for outcome in cache.outcomes])[self.episode]
        late = self.index >= cache.frame_count[self.episode] - LATE
        flips = (self.success[1:] != self.success[:-1]) & (self.episode[1:] == self.episode[:-1])
        spread = F.max_pool1d(F.pad(flips.float(), (0, 1))[None], 7, 1, 3)[0] > 0
        kinds = (self.success, near & late, spread, torch.ones_like(self.success))
        self.rows = [kind.nonzero()[:, 0] for kind in kinds if kind.any()]

    def draw(self, batch: int, generator: torch.Generator) -> Tensor:
        """Row numbers, equally many of each pool."""
        size = batch // len(self.rows)
        return torch.cat([rows[torch.randint(len(rows), (size,), generator=generator)] for rows in self.rows])


def fit_outcome(
    network: OutcomeNetwork,
    cache: FrameCache,
    patch: int,
    updates: int,
    generator: torch.Generator,
    *,
    misnaming: Misnaming | None = None,
    batch: int = 72,
    name: str = "outcome",
) -> dict[str, float]:
    """Trains a network; the averaged weights are kept.

    Args:
        patch: pixels along a side of a patch. name: of the progress bar.

    Returns:
        The mean loss of the last tenth of the updates, and the mean probability of success that misnamed success
        states were given in them.
    """
    pools = FramePools(cache)
    names = Wordings(cache.instructions, cache.outcomes, misnaming or Misnaming(), _MISNAMED)
    if updates < 1 or not pools.rows:
        return {}
    average = copy.deepcopy(network)
    optimizer = torch.optim.AdamW(network.parameters(), _RATE, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _PEAK, max(2, updates))
    network.train()
    losses, believed = [], []
    for step in tqdm(range(updates), desc=name, disable=None):
        rows = pools.draw(batch, generator)
        episode, index, truth = pools.episode[rows], pools.index[rows], pools.success[rows].float()
        first, now = cache.frame(episode, torch.zeros_like(index)), cache.frame(episode, index)
        first, now = _shaken(first, now, patch, generator)
        again = (truth > 0.5).nonzero()[:, 0]
        wording = names.draw(episode[again], generator)
        again, wording = again[wording > 0], wording[wording > 0]
        texts = names.told(episode, torch.zeros_like(episode)) + names.told(episode[again], wording)
        first, now = torch.cat([first, first[again]]), torch.cat([now, now[again]])
        truth = torch.cat([truth, torch.zeros(len(again))])
        with torch.autocast("cpu", torch.bfloat16, enabled=has_bfloat16()):
            logits = network(first, now, network.instruction.tokens(texts))
        loss = F.binary_cross_entropy_with_logits(logits, truth)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
        if len(again):
            believed.append(float(torch.sigmoid(logits[-len(again) :].detach()).mean()))
        decay = min(0.99, (1 + step) / (10 + step))
        with torch.no_grad():
            for mean, new in zip(average.parameters(), network.parameters(), strict=True):
                mean.lerp_(new, 1 - decay)
    network.load_state_dict(average.state_dict())
    network.eval()
    lasts = {key: values[-max(1, len(values) // 10) :] for key, values in (("loss", losses), ("misnamed", believed))}
    return {key: round(sum(values) / len(values), 4) for key, values in lasts.items() if values}


def _shaken(first: Tensor, now: Tensor, patch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Some blur, noise and other light, in place, as a world model may have them: it is to look at the scene."""
    batch = len(now)
    order = torch.randperm(batch, generator=generator)
    soft, noisy = order[: int(0.4 * batch)], order[int(0.3 * batch) : int(0.8 * batch)]
    if len(soft):
        pixels = F.pixel_shuffle(now[soft].contiguous(), patch)
        pixels = F.interpolate(F.avg_pool2d(pixels, 2), scale_factor=2.0, mode="bilinear")
        now[soft] = F.pixel_unshuffle(pixels, patch)
    level = 0.08 * torch.rand(len(noisy), 1, 1, 1, generator=generator)
    now[noisy] += level * torch.randn(now[noisy].shape, generator=generator)
    light = 0.05 * torch.randn(batch, 1, 1, 1, generator=generator)
    return first.add_(light), now.add_(light)
