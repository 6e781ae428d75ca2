"""Imagined images against the true ones: PSNR and SSIM per camera and per horizon, with the curve of their drift."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wvl_ros.evaluation import metrics
from wvl_ros.evaluation.charts import Line, Panel, write_chart
from wvl_ros.evaluation.imagined import ImaginedEpisode
from wvl_ros.evaluation.outcome import mean
from wvl_ros.training.frame_cache import FrameCache
from wvl_ros.world_model import patches
from wvl_ros.world_model.model import WorldModel
from wvl_ros.worlds.droid import CAMERAS

HORIZONS = (0.2, 1.0, 2.0, 3.0, 4.0, 8.0, 11.0)  # s
FPS = 5.0  # of imagined frames
_MEASURES = ("psnr", "ssim")


def image_measures(
    cache: FrameCache, episodes: NDArray[np.int64], imagined: Sequence[ImaginedEpisode], model: WorldModel
) -> dict[str, Any]:
    """PSNR (dB) and SSIM of every imagined frame but the given first one.

    Returns:
        `psnr`, `ssim`: mean over an episode's frames and views, then over episodes; `intervals_95` of these. Of each
        camera the same, and at horizons `psnr_at_1.0s`, ... of the episodes that last so long. `drift`: `seconds` and
        `episodes` (how many last so long), and for each camera the means at each of these times.
    """
    patch = int(model.config["patch"])
    longest = max((len(own.frames) for own in imagined), default=0)
    # (measure, episode, view, frame); NaN after an episode's end
    values = np.full((2, len(imagined), len(CAMERAS), longest), np.nan)
    for row, (episode, own) in enumerate(zip(episodes.tolist(), imagined, strict=True)):
        n = len(own.frames)
        if n == 0:
            continue
        start = int(cache.frame_start[episode]) + 1
        true = patches.from_patches(cache.frames[start : start + n], patch)
        mine = patches.from_patches(own.frames, patch)
        for view in range(len(CAMERAS)):
            values[0, row, view, :n] = metrics.psnr(mine[:, view], true[:, view])
            values[1, row, view, :n] = metrics.ssim(mine[:, view], true[:, view])
    values = values[:, np.isfinite(values).any((0, 2, 3))] if longest else values
    by_view = np.nanmean(values, axis=3) if values.size else np.empty((2, 0, len(CAMERAS)))
    result: dict[str, Any] = {}
    for view, camera in enumerate(CAMERAS):
        result[camera] = {name: mean(by_view[i, :, view]) for i, name in enumerate(_MEASURES)}
        for i, name in enumerate(_MEASURES):
            for seconds in HORIZONS:
                t = round(seconds * FPS) - 1
                column = values[i, :, view, t] if t < longest else np.empty(0)
                result[camera][f"{name}_at_{seconds}s"] = mean(column[np.isfinite(column)])
    whole = by_view.mean(2)
    result |= {name: mean(whole[i]) for i, name in enumerate(_MEASURES)}
    result["intervals_95"] = {name: metrics.mean_interval(whole[i]) for i, name in enumerate(_MEASURES)}
    return result | {"drift": _drift(values)}


def write_drift(path: Path, drift: dict[str, Any]) -> None:
    """The drift as a picture: PSNR and SSIM over the seconds imagined, a line a camera, and how many episodes last."""
    seconds = drift["seconds"]
    panels = []
    for name, label in zip(_MEASURES, ("PSNR, dB", "SSIM"), strict=True):
        lines = [Line(camera, seconds, drift[camera][name]) for camera in CAMERAS]
        panels.append(Panel("imagined seconds", label, lines))
    panels.append(Panel("imagined seconds", "episodes that last so long", [Line("", seconds, drift["episodes"])]))
    write_chart(path, panels)


def _drift(values: NDArray[np.float64]) -> dict[str, Any]:
    frames = values.shape[3]
    lasting = np.isfinite(values[0, :, 0]).sum(0) if values.size else np.zeros(0, int)
    curve: dict[str, Any] = {"seconds": [round((t + 1) / FPS, 3) for t in range(frames)], "episodes": lasting.tolist()}
    for view, camera in enumerate(CAMERAS):
        means = [np.nanmean(values[i, :, view], axis=0) if values.size else np.zeros(0) for i in range(2)]
        curve[camera] = {name: np.round(line, 4).tolist() for name, line in zip(_MEASURES, means, strict=True)}
    return curve
