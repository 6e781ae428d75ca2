"""How well the imagined arm follows the true one, as a state and as it is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from wvl_ros.evaluation import metrics
from wvl_ros.evaluation.imagined import ImaginedEpisode
from wvl_ros.evaluation.outcome import mean
from wvl_ros.training.frame_cache import FrameCache
from wvl_ros.world_model import patches
from wvl_ros.world_model.kinematics import Kinematics
from wvl_ros.world_model.model import WorldModel

PIXEL_HEIGHT = 128  # distances are given in pixels of an image this high


def arm_measures(
    cache: FrameCache, episodes: NDArray[np.int64], imagined: Sequence[ImaginedEpisode], model: WorldModel
) -> dict[str, Any]:
    """How well the imagined arm follows the true one.

    Returns:
        `tcp_mm` and `gripper`: error of the kinematic state. `tcp_px`: that, projected to the first exterior
        view. `drawn_px`: how far off the gripper is drawn in that view, by block matching on eight frames an episode.
        Pixels are those of a 128-pixel-high image.
    """
    found: dict[str, list[NDArray[np.float32]]] = {"tcp_mm": [], "tcp_px": [], "drawn_px": [], "gripper": []}
    ends = []
    geometry, patch, size = model.geometry, int(model.config["patch"]), int(model.config["image_size"])
    for episode, own in zip(episodes.tolist(), imagined, strict=True):
        n = len(own.kinematics)
        if n == 0:
            continue
        index = torch.arange(1, n + 1)
        true = Kinematics.unpack(cache.kinematics[cache.step(torch.full_like(index, episode), index)]).state()
        mine = Kinematics.unpack(own.kinematics).state()
        gap = (mine[:, :3] - true[:, :3]).norm(dim=1) * 1000
        found["tcp_mm"].append(gap.numpy())
        ends.append(float(gap[-1]))
        found["gripper"].append((mine[:, 9] - true[:, 9]).abs().numpy())
        if geometry.known[0] and cache.calibrated[episode] > 0:
            places = geometry.project(0, true[:, None, :3])[:, 0]
            apart = geometry.project(0, mine[:, None, :3])[:, 0] - places
            found["tcp_px"].append((apart.norm(dim=-1) * PIXEL_HEIGHT).numpy())
            picked = np.unique(np.linspace(0, n - 1, 8).astype(int))
            truth = patches.from_patches(cache.frames[int(cache.frame_start[episode]) + 1 + picked], patch)[:, 0]
            drawn = patches.from_patches(own.frames[picked], patch)[:, 0]
            centers = (places[picked] + 0.5) * size
            shifts = [
                metrics.displacement(a, b, (float(x), float(y)))
                for a, b, (x, y) in zip(drawn, truth, centers, strict=True)
            ]
            known = [shift * PIXEL_HEIGHT / size for shift in shifts if shift is not None]
            found["drawn_px"].append(np.array(known, dtype=np.float32))
    result: dict[str, Any] = {name: _spread(values) for name, values in found.items()}
    return result | {"tcp_mm_at_end": {"mean": mean(np.array(ends)), "median": _median(np.array(ends))}}


def _median(values: NDArray[np.float64]) -> float | None:
    return round(float(np.median(values)), 4) if len(values) else None


def _spread(values: list[NDArray[np.float32]]) -> dict[str, float | None]:
    joined = np.concatenate(values).astype(float) if values else np.empty(0)
    p95 = round(float(np.quantile(joined, 0.95)), 4) if len(joined) else None
    return {"mean": mean(joined), "median": _median(joined), "p95": p95}
