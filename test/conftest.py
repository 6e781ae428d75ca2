"""Fixtures for all tests."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import settings

from wvl_ros.sans.episode import Episode
from wvl_ros.worlds import droid

# Before torch is imported. One thread a test process: with more threads than cores they wait for each other most of the
# time, and the children of xdist inherit what is set here.
os.environ.setdefault("OMP_NUM_THREADS", "1")
settings.register_profile("wvl", deadline=None)  # a busy machine is no failure
settings.load_profile("wvl")


def _episode(
    steps: int = 13,
    seed: int = 0,
    size: int = 64,
    outcome: str = "success",
    source: str = "expert/tabletop",
    instruction: str = "put the red cube on the green disk",
) -> Episode:
    """A smooth motion under images that change slowly; the last third is a success state when the outcome says so."""
    rng = np.random.default_rng(seed)
    phase = np.linspace(0, 1, steps)[:, None]
    joints = droid.RESET_JOINTS + 0.2 * phase * rng.uniform(-1, 1, 7)
    poses = np.stack([droid.forward_kinematics(q) for q in joints])
    grippers = np.clip(phase * 2 - 1, 0, 1)
    base = rng.integers(0, 255, (size // 8, size // 8, 3)).repeat(8, 0).repeat(8, 1)
    count = (steps - 1) // 3 + 1
    stack = np.stack([np.roll(base, 2 * i, axis=1) for i in range(count)]).astype(np.uint8)
    reward = np.zeros(steps - 1, np.float32)
    if outcome == "success":
        reward[-(steps // 3) :] = 1.0
    return Episode(
        images={camera: np.roll(stack, i, axis=3).copy() for i, camera in enumerate(droid.CAMERAS)},
        joint_position=joints,
        cartesian_position=poses,
        gripper_position=grippers,
        action=np.hstack([poses[1:], grippers[1:]]),
        reward=reward,
        task="pick_place",
        instruction=instruction,
        outcome=outcome,
        source=source,
        episode_id=f"synthetic_{seed}",
        image_stride=3,
    )


@pytest.fixture
def make_episode() -> Callable[..., Episode]:
    """Makes a small synthetic episode: steps, seed, size, outcome, source, instruction."""
    return _episode
