"""Recorded episodes imagined again: the model's own rollouts under the recorded actions, from the first true frame."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from wvl_ros.training.frame_cache import FrameCache
from wvl_ros.world_model import patches
from wvl_ros.world_model.model import WorldModel
from wvl_ros.world_model.rollout import Rollouts


@dataclass
class ImaginedEpisode:
    """The model's version of one episode, T frames (the given first one not among them).

    `frames` uint8 (T, G, G, C), `success_probability` float64 (T,), `kinematics` float32 (T, 39).
    """

    frames: NDArray[np.uint8]
    success_probability: NDArray[np.float64]
    kinematics: torch.Tensor


def imagine_episodes(
    model: WorldModel,
    cache: FrameCache,
    episodes: NDArray[np.int64],
    *,
    steps: int = 1,
    seed: int = 0,
    batch: int = 48,
    progress: bool = False,
) -> list[ImaginedEpisode]:
    """Imagines episodes of a cache to their ends; the same seed gives the same frames."""
    lengths = (cache.frame_count[episodes] - 1).numpy()
    results: dict[int, ImaginedEpisode] = {}
    order = np.argsort(lengths, kind="stable")
    for start in tqdm(range(0, len(order), batch), desc="imagining", unit="batch", disable=None if progress else True):
        rows = order[start : start + batch]
        chosen = torch.as_tensor(episodes[rows])
        zero = torch.zeros_like(chosen)
        rollouts = Rollouts(model, steps=steps, stop_at_success=False)
        rollouts.start(
            cache.frame(chosen, zero),
            cache.kinematics[cache.step(chosen, zero)],
            [cache.instructions[i] for i in chosen],
            cache.calibrated[chosen],
            [seed * 1_000_003 + int(i) for i in chosen],
        )
        frames, chances, arms = [], [], []
        for t in range(int(lengths[rows].max(initial=0))):
            rollouts.stop(torch.as_tensor(lengths[rows] <= t))
            index = torch.as_tensor(np.minimum(t, lengths[rows] - 1).clip(min=0))
            frame = rollouts.advance(cache.chunk(chosen, index))
            frames.append(patches.to_uint8(frame.frame))
            chances.append(frame.success_probability.numpy().astype(float))
            arms.append(frame.kinematics)
        for i, row in enumerate(rows.tolist()):
            n = int(lengths[row])
            results[row] = ImaginedEpisode(
                np.stack([f[i] for f in frames[:n]]) if n else np.empty((0, *cache.frames.shape[1:]), np.uint8),
                np.array([c[i] for c in chances[:n]]),
                torch.stack([a[i] for a in arms[:n]]) if n else torch.empty(0, cache.kinematics.shape[1]),
            )
    return [results[i] for i in range(len(episodes))]


def write_sheet(
    path: Path | str,
    cache: FrameCache,
    episodes: NDArray[np.int64],
    imagined: list[ImaginedEpisode],
    patch: int,
    *,
    columns: int = 10,
    views: tuple[int, ...] = (0, 2),
) -> None:
    """A PNG of episodes over time: in each pair of rows the true frames above, the imagined ones below."""
    rows = []
    for episode, own in zip(episodes.tolist(), imagined, strict=True):
        n = len(own.frames)
        if n == 0:
            continue
        chosen = np.linspace(0, n - 1, columns).round().astype(int)
        start = int(cache.frame_start[episode]) + 1
        true = patches.from_patches(cache.frames[start + chosen], patch)
        mine = patches.from_patches(own.frames[chosen], patch)
        for view in views:
            rows += [np.hstack(list(true[:, view])), np.hstack(list(mine[:, view]))]
        rows.append(np.full((6, rows[-1].shape[1], 3), 255, np.uint8))
    if not rows:
        return
    path = Path(path)
    sheet = Image.fromarray(np.vstack(rows))
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    sheet.resize((sheet.width * 2, sheet.height * 2), Image.Resampling.NEAREST).save(part, format="png")
    part.replace(path)
