"""The world model without one of its parts, each trained from scratch with the same budget, on the same episodes.

    python -m benchmarks.ablations [--updates 2000] [--data data/train] [--validation data/val] [--runs runs/ablations]

The success threshold is chosen on the validation episodes of the same kind as the training's; the figures are of other
episodes, the same for all: successes and near-successes in equal parts, half of them played by a policy. A run that was
stopped goes on.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.__main__ import RESULTS
from wvl_ros.checkpoints import find
from wvl_ros.evaluation.held_out import collect_held_out
from wvl_ros.evaluation.visual_judge import load_judge
from wvl_ros.evaluation.world_model import evaluate
from wvl_ros.training.checkpointing import write_json
from wvl_ros.training.frame_cache import open_cache
from wvl_ros.training.world_model_data import cache_shape
from wvl_ros.training.world_model_run import Sources, train
from wvl_ros.training.world_model_settings import Budget, WorldModelTraining
from wvl_ros.world_model.loading import load_world_model

SEED, EPISODES = 600_000, 200  # of the tabletop; no training, validation or final figures use these
HELD_OUT = Path("data/ablations")
KINDS: dict[str, dict[str, Any]] = {
    "full": {},
    "no near-successes": {"outcomes": ["success", "failure"]},
    "separate classifier": {"joint_reward": False},
    "expert data only": {"sources": ["expert"]},
}


def run(
    updates: int = 2000,
    data: Path = Path("data/train"),
    validation: Path = Path("data/val"),
    runs: Path = Path("runs/ablations"),
    config: Path | None = None,
) -> dict[str, Any]:
    """Trains and evaluates all kinds."""
    collect_held_out(HELD_OUT, SEED, EPISODES, find("policy", "small"), workers=2)
    judge = load_judge(find("world_model", "small"))
    figures: dict[str, Any] = {}
    for name, changes in KINDS.items():
        settings = replace(WorldModelTraining.load(config), validate_seconds=1e9, **changes)
        out = runs / name.replace(" ", "_")
        result = train(settings, Sources(data, validation), out, Budget(updates, None))
        if result.get("stopped"):
            raise SystemExit(f"Stopped at '{name}'; the command goes on there.")
        model = load_world_model(out)
        cache = open_cache(HELD_OUT, **cache_shape(model.config))
        measured, _ = evaluate(model, cache, np.arange(len(cache)), judge=judge)
        figures[name] = _row(measured) | {"seconds": result["seconds"]}
        print(f"{name}: {figures[name]}", flush=True)
    return figures


def _row(measured: dict[str, Any]) -> dict[str, Any]:
    images, outcome = measured["images"], measured["outcome"]
    row = {
        "psnr": [images["psnr"], *images["intervals_95"]["psnr"]],
        "ssim": [images["ssim"], *images["intervals_95"]["ssim"]],
        "reward_alignment": [outcome["accuracy"], *outcome["interval_95"]],
        "false_success_near": [outcome["false_success_near"], *outcome["false_success_near_interval_95"]],
        "missed_success": outcome["missed_success"],
        "auc": outcome["auc"],
        "episodes": measured["episodes"],
    }
    if "visual" in measured:
        visual = measured["visual"]["imagined"]
        row["visual_alignment"] = [visual["accuracy"], *visual["interval_95"]]
    return row


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=2000, help="of each; minutes would depend on what else runs")
    parser.add_argument("--data", type=Path, default=Path("data/train"))
    parser.add_argument("--validation", type=Path, default=Path("data/val"))
    parser.add_argument("--runs", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--config", type=Path, default=None)
    options = parser.parse_args()
    found = run(options.updates, options.data, options.validation, options.runs, options.config)
    write_json(RESULTS / "ablations.json", {"updates": options.updates, "figures": found})
