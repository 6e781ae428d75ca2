"""Who looks at a video and says whether it ends in success: trained on real frames only, for the visual alignment.

World-VLA-Loop has people compare how an imagined and a true video end; this classifier stands in for them. It never
sees an imagined frame in training, and its accuracy on true videos is printed beside what it says of imagined ones.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from wvl_ros.training.checkpointing import load_state, module_tensors, restore_module, save_state
from wvl_ros.training.frame_cache import FrameCache
from wvl_ros.world_model import patches
from wvl_ros.world_model.instruction import InstructionEncoder

FILE = "visual_judge.safetensors"
LAST = 3  # frames at the end that are judged, 0.6 s
_VIEWS = 3


class VisualJudge(nn.Module):
    """A small CNN on the first and the present frame of three views, and the instruction."""

    def __init__(self, vocabulary: list[str]) -> None:
        super().__init__()
        self.instruction = InstructionEncoder(vocabulary, 32)
        self.views = nn.ModuleList([_encoder() for _ in range(_VIEWS)])
        self.film = nn.Linear(32, 2 * 64 * _VIEWS)
        self.head = nn.Sequential(
            nn.Conv2d(64 * _VIEWS, 64, 1), nn.SiLU(), nn.Flatten(), nn.Linear(64 * 64, 96), nn.SiLU(), nn.Linear(96, 1)
        )

    def forward(self, first: Tensor, now: Tensor, tokens: Tensor) -> Tensor:
        """Logits (B,) of success: frames float (B, V, 3, 64, 64) in -1..1, word numbers (B, words)."""
        pairs = torch.cat([first, now], 2)
        features = torch.cat([view(pairs[:, i]) for i, view in enumerate(self.views)], 1)
        scale, shift = self.film(self.instruction(tokens))[..., None, None].chunk(2, 1)
        return self.head(features * (1 + scale) + shift)[:, 0]


def fit_judge(
    cache: FrameCache, vocabulary: list[str], patch: int, *, steps: int = 1300, batch: int = 72, seed: int = 0
) -> VisualJudge:
    """Trains a judge on the true frames of a cache: is this frame a success state?

    A third of each batch are success states, a third late frames of near-successes, a third any frames.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = VisualJudge(vocabulary)
        tokens = model.instruction.tokens(cache.instructions)
        rows = [(e, j) for e, n in enumerate(cache.frame_count.tolist()) for j in range(1, n)]
        episode, index = (torch.tensor(column) for column in zip(*rows, strict=True))
        success = cache.rewards[cache.step(episode, index)] > 0.5
        near = torch.tensor([outcome == "near_success" for outcome in cache.outcomes])[episode]
        late = index >= cache.frame_count[episode] - 2 * LAST
        pools = [pool for pool in (success, near & late, torch.ones_like(success)) if pool.any()]
        places = [pool.nonzero()[:, 0] for pool in pools]
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.02)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps)
        model.train()
        for _ in tqdm(range(steps), desc="visual judge", disable=None):
            rows_ = torch.cat([place[torch.randint(len(place), (batch // 3,))] for place in places])
            e, j = episode[rows_], index[rows_]
            first, now = _pictures(cache, e, torch.zeros_like(j), patch), _pictures(cache, e, j, patch)
            first, now = _shaken(first, now)
            logits = model(first, now, tokens[e])
            loss = F.binary_cross_entropy_with_logits(logits, success[rows_].float())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        return model.eval()


@torch.no_grad()
def judge_videos(
    model: VisualJudge,
    cache: FrameCache,
    episodes: NDArray[np.int64],
    patch: int,
    videos: list[NDArray[np.uint8]] | None,
) -> NDArray[np.float64]:
    """Probability (N,) that each video ends in success, by its last frames.

    Args:
        videos: N arrays of frames as patches (T, G, G, C), from frame 1 on; None judges the true ones.
    """
    chances = []
    for row, episode in enumerate(episodes.tolist()):
        count = int(cache.frame_count[episode])
        start = int(cache.frame_start[episode])
        frames = cache.frames[start + 1 : start + count] if videos is None else videos[row]
        now = _normal(patches.from_patches(frames[-LAST:], patch))
        first = _normal(patches.from_patches(cache.frames[start : start + 1], patch)).expand(len(now), -1, -1, -1, -1)
        tokens = model.instruction.tokens([cache.instructions[episode]]).expand(len(now), -1)
        chances.append(float(torch.sigmoid(model(first, now, tokens)).mean()) if len(now) else 0.0)
    return np.array(chances)


def save_judge(folder: Path, model: VisualJudge) -> None:
    """Puts the judge beside a checkpoint."""
    save_state(folder / FILE, module_tensors(model, "judge"), {"trained_on": "true frames"})


def load_judge(folder: Path, vocabulary: list[str]) -> VisualJudge | None:
    """The judge beside a checkpoint; None where there is none."""
    if not (folder / FILE).is_file():
        return None
    model = VisualJudge(vocabulary)
    restore_module(model, load_state(folder / FILE)[0], "judge")
    return model.eval()


def _encoder() -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in ((6, 24), (24, 48), (48, 64)):
        layers += [nn.Conv2d(before, after, 3, 2, 1), nn.GroupNorm(4, after), nn.SiLU()]
    return nn.Sequential(*layers)


def _pictures(cache: FrameCache, episode: Tensor, index: Tensor, patch: int) -> Tensor:
    return _normal(patches.from_patches(cache.frames[(cache.frame_start[episode] + index).numpy()], patch))


def _normal(pictures: NDArray[np.uint8]) -> Tensor:
    """(B, V, H, W, 3) uint8 as (B, V, 3, H, W) in -1..1."""
    return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 1, 4, 2, 3).float() / 127.5 - 1


def _shaken(first: Tensor, now: Tensor) -> tuple[Tensor, Tensor]:
    """Some blur, noise and other light, as a world model may have them: the judge is to look at the scene instead."""
    batch = len(now)
    small = F.interpolate(now.flatten(0, 1), scale_factor=0.5, mode="area")
    soft = F.interpolate(small, scale_factor=2.0, mode="bilinear").view_as(now)
    blurred = torch.rand(batch, 1, 1, 1, 1) < 0.4
    now = torch.where(blurred, soft, now) + 0.05 * torch.rand(batch, 1, 1, 1, 1) * torch.randn_like(now)
    light = 0.05 * torch.randn(batch, 1, 1, 1, 1)
    return first + light, now + light
