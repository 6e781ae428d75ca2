"""What the imagined gripper closes on is compared where the true one stops."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from wvl_ros.evaluation.closings import _stops, closing_measures
from wvl_ros.evaluation.imagined import ImaginedEpisode
from wvl_ros.sans.episode import Episode
from wvl_ros.training.frame_cache import FrameCache, open_cache
from wvl_ros.world_model.kinematics import GRIPPER

EMPTY, CUBE = [0.0, 0.0, 0.5, 1.0, 1.0, 1.0], [0.0, 0.0, 0.4, 0.5, 0.5, 0.0]


@pytest.fixture
def cache(make_episode: Callable[..., Episode], tmp_path: Path) -> FrameCache:
    for i, positions in enumerate((EMPTY, CUBE, CUBE)):
        episode = make_episode(seed=i, steps=16)
        frames = np.interp(np.arange(16) / 3, np.arange(6), positions)
        episode.gripper_position = frames[:, None]
        episode.action[:, 6] = (np.arange(15) >= 3) & (np.arange(15) < (15 if positions is EMPTY else 12))
        episode.save(tmp_path / f"{i}.safetensors")
    return open_cache(tmp_path, size=64, patch=4, actions_per_frame=3, rig="tabletop")


def _imagined(cache: FrameCache, grippers: list[list[float]]) -> list[ImaginedEpisode]:
    own = []
    for episode, positions in enumerate(grippers):
        start, frame = int(cache.step_start[episode]), int(cache.frame_start[episode])
        kinematics = cache.kinematics[start + 3 : start + 18 : 3].clone()
        kinematics[:, GRIPPER] = kinematics.new_tensor(positions[1:])
        own.append(ImaginedEpisode(cache.frames[frame + 1 : frame + 6], np.zeros(5), kinematics))
    return own


def test_grasps_that_never_were_are_counted(cache: FrameCache) -> None:
    right = closing_measures(cache, np.arange(3), _imagined(cache, [EMPTY, CUBE, CUBE]))
    assert (right["on_nothing"], right["on_something"]) == (1, 2)
    assert (right["nothing_told_as_held"], right["held_told_as_nothing"]) == (0.0, 0.0)
    wrong = closing_measures(cache, np.arange(3), _imagined(cache, [CUBE, CUBE, EMPTY]))
    assert (wrong["nothing_told_as_held"], wrong["held_told_as_nothing"]) == (1.0, 0.5)
    none = closing_measures(cache, np.arange(0), [])
    assert (none["on_nothing"], none["nothing_told_as_held"]) == (0, None)


def test_only_a_gripper_that_was_open_closes() -> None:
    def stops(positions: list[float], closed: list[int]) -> list[int]:
        return list(_stops(np.array(positions, np.float32), np.array(closed, bool)))

    assert stops([0, 0.5, 0.5, 0.5], [1, 1, 1]) == [2]
    assert stops([1, 1, 1, 1], [1, 1, 1]) == []  # a fist from the start
    assert stops([0, 0, 0.4, 0.4, 0, 0.5, 0.5], [0, 1, 1, 0, 1, 1]) == [3, 6]  # twice
    assert stops([0, 0.2, 0, 0], [1, 0, 0]) == []  # thought better of it
