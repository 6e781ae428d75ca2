"""The tabletop: speed with and without cameras, experts over 100 seeds a task, identical reruns."""

from __future__ import annotations

import hashlib
import time
from typing import Any

import numpy as np

from wvl_ros.evaluation.wilson import wilson_interval
from wvl_ros.worlds.experts import make_expert
from wvl_ros.worlds.tabletop import TabletopWorld
from wvl_ros.worlds.tasks import TASKS

SEEDS = range(500_000, 500_100)


def run() -> dict[str, Any]:
    """All figures of the tabletop."""
    figures: dict[str, Any] = {
        "steps/s a core, three 128x128 cameras": speed(cameras=True, steps=300),
        "steps/s a core, no cameras": speed(cameras=False, steps=1500),
    }
    for task in TASKS:
        successes, steps = experts(task)
        low, high = wilson_interval(successes, len(SEEDS))
        figures[f"expert {task}"] = (
            f"{successes} of {len(SEEDS)} (95 % {low:.0%} to {high:.0%}), {steps:.0f} steps an episode"
        )
    figures["same seed twice, identical states and images"] = fingerprint(1) == fingerprint(1)
    figures["another seed, identical"] = fingerprint(1) == fingerprint(2)
    return figures


def speed(*, cameras: bool, steps: int) -> str:
    """Steps a second of wall time and of processor time over one episode of random commands, rendering every step."""
    world = TabletopWorld("pick_place", 128, 128, cameras=cameras, max_steps=10**6)
    _, info = world.reset(seed=0)
    rng = np.random.default_rng(0)
    start = info["commanded_pose"]
    offsets = np.cumsum(rng.normal(0.0, 0.003, (steps, 3)), axis=0)
    wall, cpu = time.perf_counter(), time.process_time()
    for offset in offsets:
        world.step(start + np.append(offset, np.zeros(4)))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    world.close()
    return f"{steps / cpu:.0f} by processor time, {steps / wall:.0f} by the clock"


def experts(task: str) -> tuple[int, float]:
    """Successes over `SEEDS` and mean length of the flawless expert."""
    world = TabletopWorld(task, cameras=False)
    successes, steps = 0, 0
    for seed in SEEDS:
        world.reset(seed=seed)
        expert = make_expert(world, seed=seed)
        while True:
            *_, terminated, truncated, info = world.step(expert.act())
            if terminated or truncated:
                break
        successes += terminated
        steps += info["step"]
    return successes, steps / len(SEEDS)


def fingerprint(seed: int) -> str:
    """A hash of all states and images of one expert episode a task."""
    digest = hashlib.sha256()
    for task in TASKS:
        world = TabletopWorld(task, 128, 128, image_stride=5)
        observation, _ = world.reset(seed=seed)
        expert = make_expert(world, seed=seed)
        for _ in range(40):
            observation, *_ = world.step(expert.act())
            for value in observation.values():
                digest.update(np.ascontiguousarray(value).tobytes())
        world.close()
    return digest.hexdigest()
