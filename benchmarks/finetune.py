"""Fine-tuning on 50 new episodes, with and without old ones replayed: time, what is learned, what is forgotten.

The new episodes are played by the shipped policy, two tasks of four; the old ones are played by the experts.

    python -m benchmarks.finetune [--minutes 10] [--from small] [--replay data/train]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.__main__ import RESULTS
from wvl_ros.checkpoints import find
from wvl_ros.commands import collect
from wvl_ros.errors import ConfigError
from wvl_ros.evaluation.world_model import evaluate
from wvl_ros.training.checkpointing import write_json
from wvl_ros.training.frame_cache import open_cache
from wvl_ros.training.world_model_data import cache_shape
from wvl_ros.training.world_model_run import Sources, fine_tuning, train
from wvl_ros.training.world_model_settings import Budget, WorldModelTraining
from wvl_ros.world_model.loading import load_world_model
from wvl_ros.world_model.model import WorldModel

DATA = Path("data/fine_tune")  # kept for the next time
NEW_TASKS, NEW_EACH = ("push", "stack"), 25
TEMPERATURE = 2.0
HELD_EACH, OLD_EACH = 20, 15  # of a task


def run(
    minutes: float = 10.0, start: str = "small", replay: Path = Path("data/train"), lora: int = 0
) -> dict[str, Any]:
    """Fine-tunes twice and evaluates before and after."""
    if not replay.is_dir():
        raise ConfigError(f"There are no old episodes at '{replay}'; give them with --replay.")
    _collect(DATA / "new", NEW_TASKS, NEW_EACH, 700_000, "small")
    _collect(DATA / "new_held_out", NEW_TASKS, HELD_EACH, 720_000, "small")
    _collect(DATA / "old_held_out", ("all",), OLD_EACH, 740_000, "")
    figures: dict[str, Any] = {"before": _measure(load_world_model(find("world_model", start)))}
    kinds = {"with replay": replay, "without replay": None}
    for name, old in kinds.items():
        with tempfile.TemporaryDirectory() as scratch:
            model = load_world_model(find("world_model", start))
            began = time.perf_counter()
            settings = fine_tuning(WorldModelTraining(validation_episodes=20, validate_seconds=1e9), model)
            sources = Sources(DATA / "new", DATA / "new_held_out", old, model, lora)
            result = train(settings, sources, Path(scratch), Budget(None, minutes))
            figures[name] = {
                "minutes in all": round((time.perf_counter() - began) / 60, 1),
                "updates": result["step"],
                **_measure(load_world_model(Path(scratch))),
            }
    return figures


def _collect(folder: Path, tasks: tuple[str, ...], episodes: int, seed: int, policy: str) -> None:
    for task in tasks:
        words = ["--task", task, "--episodes", str(episodes), "--seed", str(seed), "--out", str(folder)]
        words += ["--workers", "2"]
        words += ["--policy", policy, "--temperature", str(TEMPERATURE)] if policy else []
        parser = argparse.ArgumentParser()
        collect.add_arguments(parser)
        collect.run(parser.parse_args(words))


def _measure(model: WorldModel) -> dict[str, str]:
    figures = {}
    for name in ("new_held_out", "old_held_out"):
        cache = open_cache(DATA / name, **cache_shape(model.config))
        measured, _ = evaluate(model, cache, np.arange(len(cache)))
        outcome, images = measured["outcome"], measured["images"]
        low, high = outcome["interval_95"]
        figures[name] = (
            f"PSNR {images['psnr']:.2f} {images['intervals_95']['psnr']}, SSIM {images['ssim']:.4f}, "
            f"outcome {outcome['accuracy']:.3f} [{low:.3f}, {high:.3f}] of {outcome['episodes']}"
        )
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--from", dest="start", default="small")
    parser.add_argument("--replay", type=Path, default=Path("data/train"))
    parser.add_argument("--lora", type=int, default=0)
    options = parser.parse_args()
    found = run(options.minutes, options.start, options.replay, options.lora)
    for key, value in found.items():
        print(f"{key}: {value}")
    write_json(RESULTS / "finetune.json", {"minutes": options.minutes, "lora": options.lora, "figures": found})
