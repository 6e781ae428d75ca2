"""What a little real data gives: the world model fine-tuned on all DROID episodes of a folder but one, for that one.

WVL_DROID names the folder (seven episodes were used). Each episode is left out in turn; the others fine-tune the base
model, with tabletop episodes replayed (they also hold the failures that a reward head needs). The one left out is then
imagined from its first frame by its recorded actions. Videos and contact sheets go to runs/droid_world_model, where a
run that was stopped goes on.

WVL_DROID_BASE is the model to begin with (default: small), WVL_DROID_MINUTES the training time of each (default: 4),
WVL_DROID_SEEN the names of episodes that the base was trained with, separated by commas: their rows say so, as for
these the figures are not those of an unseen episode.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wvl_ros.checkpoints import find
from wvl_ros.errors import ConfigError
from wvl_ros.evaluation import metrics
from wvl_ros.evaluation.arm import arm_measures
from wvl_ros.evaluation.images import image_measures, write_drift
from wvl_ros.evaluation.imagined import imagine_episodes
from wvl_ros.sans.collect import Job
from wvl_ros.sans.droid import read_droid
from wvl_ros.training import world_model as training
from wvl_ros.training.frame_cache import FrameCache, open_cache
from wvl_ros.training.validation import draw
from wvl_ros.training.world_model_data import cache_shape
from wvl_ros.world_model.loading import load_world_model
from wvl_ros.world_model.model import WorldModel
from wvl_ros.worlds.tasks import TASKS

OUT = Path("runs/droid_world_model")
SEEN_BY_SMALL = "episode_1,episode_2,episode_3,episode_4,episode_5,episode_6"  # among the shipped model's training data
REPLAYED, REPLAY_SHARE = 40, 0.25
REPLAY_SEED = 800_000
HORIZONS = (1.0, 2.0, 4.0, 8.0)  # s


def run() -> dict[str, Any]:
    """For each episode left out: PSNR and SSIM before and after, beside a video that stands still."""
    folder = os.environ.get("WVL_DROID")
    if not folder:
        raise ConfigError("Set WVL_DROID to a folder of DROID episodes (annotation.json beside three MP4s).")
    paths = sorted(path.parent for path in Path(folder).glob("*/annotation.json"))
    if len(paths) < 2:
        raise ConfigError(f"'{folder}' holds {len(paths)} DROID episodes; leaving one out needs at least two.")
    base = os.environ.get("WVL_DROID_BASE", "small")
    seen = os.environ.get("WVL_DROID_SEEN", SEEN_BY_SMALL if base == "small" else "").split(",")
    minutes = float(os.environ.get("WVL_DROID_MINUTES", "4"))
    _replay(OUT / "replay")
    figures: dict[str, Any] = {"base model": base, "minutes of fine-tuning each": minutes}
    rows: dict[str, dict[str, Any]] = {}
    for held in paths:
        rows[held.name] = row = _fold(held, paths, base, minutes)
        row["seen by the base"] = held.name in seen
        figures[held.name] = _sentence(row)
    for name, chosen in (
        ("mean", list(rows.values())),
        ("mean of those unseen by the base", [row for row in rows.values() if not row["seen by the base"]]),
    ):
        if chosen:
            means = {
                when: {key: float(np.mean([row[when][key] for row in chosen])) for key in ("psnr", "ssim")}
                for when in ("before", "after", "still")
            }
            figures[f"{name}, {len(chosen)} episodes"] = _sentence({"seconds": "", **means})
    return figures | {"all figures": rows}


def _fold(held: Path, paths: list[Path], base: str, minutes: float) -> dict[str, Any]:
    place = OUT / held.name
    for path in paths:
        target = place / ("held" if path == held else "data") / f"{path.name}.safetensors"
        if not target.is_file():
            read_droid(path).save(target)
    words = [
        *("--from", base, "--data", place / "data", "--replay", OUT / "replay", "--replay-share", REPLAY_SHARE),
        *("--out", place / "model", "--minutes", minutes),
    ]
    parser = argparse.ArgumentParser()
    training.add_arguments(parser)
    training.run(parser.parse_args([str(word) for word in words]))
    row: dict[str, Any] = {}
    for when, checkpoint in (("before", find("world_model", base)), ("after", place / "model")):
        model = load_world_model(checkpoint)
        cache = open_cache(place / "held", **cache_shape(model.config))
        row |= {when: _measure(model, cache, place / when), "still": _still(cache)}
        row["seconds"] = (int(cache.frame_count[0]) - 1) / 5
    return row


def _measure(model: WorldModel, cache: FrameCache, place: Path) -> dict[str, Any]:
    """Figures of the one episode of a cache; its video, contact sheet and drift are written beside `place`."""
    episodes = np.zeros(1, np.int64)
    with torch.no_grad():
        imagined = imagine_episodes(model, cache, episodes)
    draw(place.parent, place.name, cache, episodes, imagined, int(model.config["patch"]))
    images = image_measures(cache, episodes, imagined, model)
    write_drift(place.parent / f"{place.name}_drift.png", images["drift"])
    return images | {"tcp_mm": arm_measures(cache, episodes, imagined, model)["tcp_mm"]["mean"]}


def _still(cache: FrameCache) -> dict[str, float]:
    """PSNR and SSIM of the first frame against all later ones: what a model that draws no motion gets."""
    from wvl_ros.world_model import patches

    start, count = int(cache.frame_start[0]), int(cache.frame_count[0])
    frames = cache.frames[start : start + count]
    views = patches.from_patches(frames, int((frames.shape[3] / 9) ** 0.5))
    first, later = (views[:1].repeat(count - 1, 0), views[1:])
    return {
        name: float(np.mean([measure(first[:, view], later[:, view]) for view in range(patches.VIEWS)]))
        for name, measure in (("psnr", metrics.psnr), ("ssim", metrics.ssim))
    }


def _sentence(row: dict[str, Any]) -> str:
    parts = [
        f"{name} {row[when]['psnr']:.1f} dB {row[when]['ssim']:.3f}"
        for name, when in (("still", "still"), ("before", "before"), ("after", "after"))
    ]
    text = f"{row['seconds']:.0f} s: " if row["seconds"] else ""
    text += "; ".join(parts)
    if "tcp_mm" in row["after"]:
        at = [
            f"{seconds:g} s {np.mean(known):.1f}"
            for seconds in HORIZONS
            if (known := [of[f"psnr_at_{seconds}s"] for of in _cameras(row["after"]) if of[f"psnr_at_{seconds}s"]])
        ]
        text += f" (at {', '.join(at)}); arm {row['before']['tcp_mm']:.0f} -> {row['after']['tcp_mm']:.0f} mm off"
    return text + (" [seen by the base]" if row.get("seen by the base") else "")


def _cameras(images: dict[str, Any]) -> list[dict[str, Any]]:
    from wvl_ros.worlds.droid import CAMERAS

    return [images[camera] for camera in CAMERAS]


def _replay(folder: Path) -> None:
    """Tabletop episodes of every outcome, by experts of every skill."""
    for i in range(REPLAYED):
        path = folder / f"{i:03d}.safetensors"
        if not path.is_file():
            Job(list(TASKS)[i % len(TASKS)], REPLAY_SEED + i).run().save(path)
