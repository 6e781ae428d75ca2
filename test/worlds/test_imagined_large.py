"""The imagined world on a large world model: the same interface, a call of several frames at once."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from wvl_ros.sans.episode import Episode
from wvl_ros.world_model.large import save_large
from wvl_ros.world_model.svd.model import SVDWorldModel
from wvl_ros.worlds import droid
from wvl_ros.worlds.imagined import ImaginedWorld


@pytest.fixture
def checkpoint(tmp_path: Path, make_svd: Callable[..., SVDWorldModel]) -> Path:
    save_large(make_svd(actions_per_frame=3), tmp_path, torch.float32)
    return tmp_path


def test_images_change_with_every_call(checkpoint: Path, make_episode: Callable[..., Episode]) -> None:
    episode = make_episode(steps=13)
    world = ImaginedWorld(checkpoint, image_height=48, image_width=80)
    observations = [world.reset(seed=0, options={"source": episode})[0]]
    steps = [world.step(action) for action in episode.action]
    observations += [step[0] for step in steps]
    assert all(world.observation_space.contains(observation) for observation in observations)
    camera = droid.CAMERAS[0]
    changed = [not np.array_equal(a[camera], b[camera]) for a, b in itertools.pairwise(observations)]
    assert [i + 1 for i, change in enumerate(changed) if change] == [6, 12]
    assert world.last_call is not None
    assert world.last_call.views.shape == (1, 2, 3, 8, 16, 3)
    assert 0 < steps[-1][4]["success_probability"] < 0.5
    assert np.allclose(steps[-1][0]["cartesian_position"][:3], episode.cartesian_position[-1][:3], atol=2e-3)
