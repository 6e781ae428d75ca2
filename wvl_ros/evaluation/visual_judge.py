"""Who looks at a video and says whether it ends in success: trained on real frames only, for the visual alignment.

World-VLA-Loop has people compare how an imagined and a true video end; this classifier stands in for them. It never
sees an imagined frame in training, and its accuracy on true videos is printed beside what it says of imagined ones.
"""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from wvl_ros.errors import CheckpointError
from wvl_ros.training.checkpointing import load_state, module_tensors, restore_module, save_state
from wvl_ros.training.frame_cache import FrameCache
from wvl_ros.world_model import patches
from wvl_ros.world_model.instruction import InstructionEncoder

FILE = "visual_judge.safetensors"
LAST = 3  # frames at the end that are judged, 0.6 s
MEMBERS = 2  # networks whose verdicts are averaged
_WIDTH = 64  # channels of a view


class VisualJudge(nn.Module):
    """Small CNNs on the first and the present frame of three views, and the instruction; their logits are averaged.

    Args:
        patch: pixels along a side of a patch. grid: patches along a side, an even number. members: networks.
    """

    def __init__(self, vocabulary: list[str], patch: int = 4, grid: int = 16, members: int = MEMBERS) -> None:
        super().__init__()
        self.facts = {"vocabulary": list(vocabulary), "patch": patch, "grid": grid, "members": members}
        self.members = nn.ModuleList([_Member(vocabulary, 3 * patch**2, grid) for _ in range(members)])

    def tokens(self, instructions: list[str]) -> Tensor:
        """Word numbers (B, words) of instructions."""
        return self.members[0].instruction.tokens(instructions)  # type: ignore[union-attr, operator]

    def forward(self, first: Tensor, now: Tensor, tokens: Tensor) -> Tensor:
        """Logits (B,) of success: frames float (B, C, G, G) in -1..1, word numbers (B, words)."""
        return torch.stack([member(first, now, tokens) for member in self.members]).mean(0)


class _Member(nn.Module):
    def __init__(self, vocabulary: list[str], view_channels: int, grid: int) -> None:
        super().__init__()
        views = patches.VIEWS
        self.instruction = InstructionEncoder(vocabulary, 32)
        self.views = nn.ModuleList([_encoder(2 * view_channels) for _ in range(views)])
        self.film = nn.Linear(32, 2 * _WIDTH * views)
        self.mixed = nn.Sequential(
            nn.Conv2d(_WIDTH * views, _WIDTH * views, 3, padding=1, groups=views),
            nn.SiLU(),
            nn.Conv2d(_WIDTH * views, 32, 1),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(32 * (grid // 2) ** 2, 96),
            nn.SiLU(),
            nn.Linear(96, 1),
        )

    def forward(self, first: Tensor, now: Tensor, tokens: Tensor) -> Tensor:
        pairs = zip(first.chunk(patches.VIEWS, 1), now.chunk(patches.VIEWS, 1), strict=True)
        features = torch.cat([view(torch.cat(pair, 1)) for view, pair in zip(self.views, pairs, strict=True)], 1)
        scale, shift = self.film(self.instruction(tokens))[..., None, None].chunk(2, 1)
        return self.mixed(features * (1 + scale) + shift)[:, 0].float()


def fit_judge(
    cache: FrameCache,
    vocabulary: list[str],
    patch: int,
    *,
    steps: int = 1800,
    batch: int = 72,
    seed: int = 0,
    members: int = MEMBERS,
) -> VisualJudge:
    """Trains a judge on the true frames of a cache: is this frame a success state?

    A quarter of each batch are success states, a quarter late frames of near-successes, a quarter lies within three
    frames of a moment at which success begins or ends, a quarter are any frames. The averaged weights are kept.

    Args:
        steps: updates of each member.
    """
    grid = int(cache.frames.shape[1])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = VisualJudge(vocabulary, patch, grid, members)
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's own hints lack it
        tokens = model.tokens(cache.instructions)
        pools = _Pools(cache)
        for number, member in enumerate(model.members):
            _fit_member(member, cache, pools, tokens, patch, steps, batch, f"visual judge {number + 1} of {members}")
        return model.eval()


class _Pools:
    """Frames to learn from, by kind: `episode`, `index`, `success` (F,) and the rows of each pool."""

    def __init__(self, cache: FrameCache) -> None:
        counts = cache.frame_count
        self.episode = torch.repeat_interleave(torch.arange(len(counts)), (counts - 1).clamp(min=0))
        start = torch.repeat_interleave((counts - 1).clamp(min=0).cumsum(0) - (counts - 1).clamp(min=0), counts - 1)
        self.index = torch.arange(len(self.episode)) - start + 1
        self.success = cache.rewards[cache.step(self.episode, self.index)] > 0.5
        near = torch.tensor([outcome == "near_success" for outcome in cache.outcomes])[self.episode]
        late = self.index >= counts[self.episode] - 2 * LAST
        flips = (self.success[1:] != self.success[:-1]) & (self.episode[1:] == self.episode[:-1])
        spread = F.max_pool1d(F.pad(flips.float(), (0, 1))[None], 7, 1, 3)[0] > 0
        kinds = (self.success, near & late, spread, torch.ones_like(self.success))
        self.rows = [kind.nonzero()[:, 0] for kind in kinds if kind.any()]

    def draw(self, batch: int) -> Tensor:
        """Row numbers, equally many of each pool."""
        size = batch // len(self.rows)
        return torch.cat([rows[torch.randint(len(rows), (size,))] for rows in self.rows])


def _fit_member(
    member: nn.Module, cache: FrameCache, pools: _Pools, tokens: Tensor, patch: int, steps: int, batch: int, name: str
) -> None:
    average = copy.deepcopy(member)
    optimizer = torch.optim.AdamW(member.parameters(), 1e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps)
    member.train()
    for step in tqdm(range(steps), desc=name, disable=None):
        rows = pools.draw(batch)
        episode, index = pools.episode[rows], pools.index[rows]
        first, now = cache.frame(episode, torch.zeros_like(index)), cache.frame(episode, index)
        first, now = _shaken(first, now, patch)
        with torch.autocast("cpu", torch.bfloat16, enabled=torch.cpu._is_avx512_bf16_supported()):
            logits = member(first, now, tokens[episode])
        loss = F.binary_cross_entropy_with_logits(logits, pools.success[rows].float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        decay = min(0.99, (1 + step) / (10 + step))
        with torch.no_grad():
            for mean, new in zip(average.parameters(), member.parameters(), strict=True):
                mean.lerp_(new, 1 - decay)
    member.load_state_dict(average.state_dict())


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
        now = patches.to_tensor(frames[-LAST:])
        first = patches.to_tensor(cache.frames[start : start + 1]).expand(len(now), -1, -1, -1)
        tokens = model.tokens([cache.instructions[episode]]).expand(len(now), -1)
        chances.append(float(torch.sigmoid(model(first, now, tokens)).mean()) if len(now) else 0.0)
    return np.array(chances)


def save_judge(folder: Path, model: VisualJudge) -> None:
    """Puts the judge beside a checkpoint, in bfloat16."""
    tensors = {name: tensor.bfloat16() for name, tensor in module_tensors(model, "judge").items()}
    save_state(folder / FILE, tensors, {"trained_on": "true frames", "judge": model.facts})


def load_judge(folder: Path) -> VisualJudge | None:
    """The judge beside a checkpoint; None where there is none, or only one of a former version.

    Raises:
        CheckpointError: the file is damaged.
    """
    if not (folder / FILE).is_file():
        return None
    tensors, facts = load_state(folder / FILE)
    if "judge" not in facts:
        return None
    try:
        model = VisualJudge(**facts["judge"])
        restore_module(model, tensors, "judge")
    except (TypeError, CheckpointError) as error:
        raise CheckpointError(
            f"The judge '{folder / FILE}' is damaged; make it again with `wvl train visual-judge`."
        ) from error
    return model.eval()


def _encoder(channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, stride in ((channels, 1), (_WIDTH, 2)):
        layers += [nn.Conv2d(before, _WIDTH, 3, stride, 1), nn.GroupNorm(4, _WIDTH), nn.SiLU()]
    return nn.Sequential(*layers)


def _shaken(first: Tensor, now: Tensor, patch: int) -> tuple[Tensor, Tensor]:
    """Some blur, noise and other light, in place, as a world model may have them: the judge is to look at the scene."""
    batch = len(now)
    order = torch.randperm(batch)
    soft, noisy = order[: int(0.4 * batch)], order[int(0.3 * batch) : int(0.8 * batch)]
    if len(soft):
        pixels = F.pixel_shuffle(now[soft].contiguous(), patch)
        pixels = F.interpolate(F.avg_pool2d(pixels, 2), scale_factor=2.0, mode="bilinear")
        now[soft] = F.pixel_unshuffle(pixels, patch)
    level = 0.08 * torch.rand(len(noisy), 1, 1, 1)
    now[noisy] += level * torch.randn(now[noisy].shape)
    light = 0.05 * torch.randn(batch, 1, 1, 1)
    return first.add_(light), now.add_(light)
