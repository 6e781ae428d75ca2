"""The small VLA on one core: from an observation at hand to a chunk of actions, batch 1 and in batches."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from wvl_ros.checkpoints import find
from wvl_ros.policies.small import SmallPolicy
from wvl_ros.worlds.tabletop import TabletopWorld

CALLS = 300
BATCH = 64


def run() -> dict[str, Any]:
    """Milliseconds a chunk, with 128x128 images as the tabletop gives them, and chunks a second in batches."""
    torch.set_num_threads(1)
    policy = SmallPolicy.from_pretrained(find("policy", "small"))
    world = TabletopWorld("pick_place", 128, 128)
    observation, info = world.reset(seed=900_000)
    world.close()
    alone = latencies(policy, [observation], [info["instruction"]], CALLS)
    many = latencies(policy, [observation] * BATCH, [info["instruction"]] * BATCH, CALLS // 10)
    median, high = np.percentile(alone, [50, 99])
    return {
        "batch 1, ms a chunk on one core": f"{median:.1f} (median), {high:.1f} (99th percentile)",
        f"batch {BATCH}, chunks/s on one core": f"{BATCH / np.median(many) * 1000:.0f}",
        "robot time of the steps executed of a chunk, ms": round(1000 * policy.config.execute_steps / 15),
    }


def latencies(
    policy: SmallPolicy, observations: list[dict[str, np.ndarray]], words: list[str], calls: int
) -> np.ndarray:
    """Milliseconds of each of so many calls (calls,), after ten that do not count."""
    spent = []
    for _ in range(calls + 10):
        began = time.perf_counter()
        policy.act(observations, words)
        spent.append(1000 * (time.perf_counter() - began))
    return np.array(spent[10:])
