"""The shipped world model on fresh tabletop episodes it was not trained or tuned on, and its speed."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wvl_ros.evaluation import world_model
from wvl_ros.evaluation.outcome import sentence
from wvl_ros.worlds.imagined import ImaginedWorld

SEED, EPISODES = 1_000_000, 200
DATA = Path("data/held_out")  # kept for the next time
SHEET = Path(__file__).parent / "results" / "imagination.png"


def run() -> dict[str, Any]:
    """Own rollouts of episodes by their recorded actions; images, arm, outcome; steps a second."""
    words = ("--seed", SEED, "--episodes", EPISODES, "--keep", DATA, "--sheet", SHEET)
    result = world_model.run(_arguments(world_model, *words))
    figures: dict[str, Any] = {
        "episodes": result["episodes"],
        "PSNR dB, SSIM over whole rollouts": f"{result['images']['psnr']}, {result['images']['ssim']}",
    }
    for camera, values in result["images"].items():
        if isinstance(values, dict):
            figures[camera] = ", ".join(f"{name} {value}" for name, value in values.items())
    figures["gripper, imagined to true"] = {name: result["arm"][name] for name in ("tcp_px", "tcp_mm", "tcp_mm_at_end")}
    for name, outcome in {"all tasks": result["outcome"], **result["outcome_by_task"]}.items():
        figures[f"outcome, {name}"] = sentence(outcome)
        if "blind" in outcome:
            figures[f"outcome, {name}, blind baseline"] = sentence(outcome["blind"])
    for threads in (1, 2):
        figures[f"imagined robot steps/s, three views, {threads} thread(s)"] = round(speed(threads), 1)
    figures["all figures"] = result
    return figures


def speed(threads: int, steps: int = 150) -> float:
    """Steps a second of one imagined rollout, observations included."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    world = ImaginedWorld(max_steps=10**6)
    _, info = world.reset(seed=0)
    action = np.asarray(info["commanded_pose"])
    for _ in range(6):
        world.step(action)
    began = time.perf_counter()
    for _ in range(steps):
        world.step(action)
    elapsed = time.perf_counter() - began
    world.close()
    torch.set_num_threads(before)
    return steps / elapsed


def _arguments(module: Any, *words: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    return parser.parse_args([str(word) for word in words])
