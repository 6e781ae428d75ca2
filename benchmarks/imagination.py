"""The shipped world model on fresh tabletop episodes it was not trained or tuned on."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from wvl_ros.evaluation import world_model
from wvl_ros.evaluation.outcome import sentence
from wvl_ros.worlds.droid import CAMERAS

SEED, EPISODES = 1_000_000, 200
DATA = Path("data/held_out")  # kept for the next time
SHEET = Path(__file__).parent / "results" / "imagination.png"
CURVES = SHEET.with_name("imagination_drift.png")


def run() -> dict[str, Any]:
    """Own rollouts of episodes by their recorded actions: images with their drift, arm, outcome, action following."""
    words = ("--seed", SEED, "--episodes", EPISODES, "--keep", DATA, "--sheet", SHEET, "--curves", CURVES)
    result = world_model.run(_arguments(world_model, *words))
    figures: dict[str, Any] = {
        "episodes": result["episodes"],
        "PSNR dB, SSIM over whole rollouts": f"{result['images']['psnr']}, {result['images']['ssim']}",
    }
    for camera, values in result["images"].items():
        if camera in CAMERAS:
            figures[camera] = ", ".join(f"{name} {value}" for name, value in values.items())
    figures["gripper, imagined to true"] = {name: result["arm"][name] for name in ("tcp_px", "tcp_mm", "tcp_mm_at_end")}
    for name, outcome in {"all tasks": result["outcome"], **result["outcome_by_task"]}.items():
        figures[f"outcome, {name}"] = sentence(outcome)
        if "blind" in outcome:
            figures[f"outcome, {name}, blind baseline"] = sentence(outcome["blind"])
    if "visual" in result:
        for name, of in (("imagined videos", "imagined"), ("true videos", "true")):
            figures[f"visual judge, {name}"] = sentence(result["visual"][of])
    frames = result["calibration"]["frames"]
    figures["reward, frame by frame"] = f"Brier {frames['brier']}, expected calibration error {frames['ece']}"
    figures["action following"] = {key: value for key, value in result["following"].items() if key != "random"}
    figures["random actions"] = result["following"]["random"]
    figures["all figures"] = result
    return figures


def _arguments(module: Any, *words: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    return parser.parse_args([str(word) for word in words])
