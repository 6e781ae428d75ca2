"""Where things were at every step of an episode."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wvl_ros.training.things import COLUMNS, mirrored, pack, things_at
from wvl_ros.world_model.things import MOST


def test_what_an_episode_says_is_found_again_with_how_it_moved() -> None:
    poses = np.random.default_rng(0).uniform(size=(2, 3, 5)) * 0.05
    before, now = torch.from_numpy(pack(poses, 2)).split(1)
    things = things_at(before, now)
    assert things.there[0].tolist() == [1.0] * 3 + [0.0] * (MOST - 3)
    assert things.place[0, :3].numpy() == pytest.approx(poses[1, :, :3])
    assert things.yaw[0, :3].numpy() == pytest.approx(poses[1, :, 3])
    assert things.half[0, :3].numpy() == pytest.approx(poses[1, :, 4])
    assert things.motion[0, :3].numpy() == pytest.approx(poses[1, :, :3] - poses[0, :, :3], abs=1e-6)
    assert things.spin[0, :3].numpy() == pytest.approx(poses[1, :, 3] - poses[0, :, 3], abs=1e-6)
    assert all(bool(part[0, 3:].eq(0).all()) for part in things)
    assert not np.isnan(pack(np.ones((4, MOST + 2, 5)), 4)).any()


def test_what_jumps_was_put_there_and_does_not_fly_on() -> None:
    poses = np.full((2, 1, 5), 0.02)
    poses[1, 0, 0] = 0.5
    before, now = torch.from_numpy(pack(poses, 2)).split(1)
    assert float(things_at(before, now).motion.abs().max()) == 0.0


def test_nothing_is_known_of_a_real_robots_things() -> None:
    for objects in (None, np.empty((4, 0, 5))):
        rows = pack(objects, 4)
        assert rows.shape == (4, COLUMNS)
        assert np.isnan(rows).all()
    assert not things_at(torch.from_numpy(rows), torch.from_numpy(rows)).there.any()


@given(st.lists(st.floats(-1, 1), min_size=5, max_size=5))
def test_a_mirror_shows_left_as_right(pose: list[float]) -> None:
    rows = torch.from_numpy(pack(np.array([[pose]]), 1))
    thing, image = things_at(rows, rows), things_at(mirrored(rows), mirrored(rows))
    assert image.place[0, 0].tolist() == pytest.approx([pose[0], -pose[1], pose[2]])
    assert float(image.yaw[0, 0]) == -float(thing.yaw[0, 0])
    assert torch.equal(mirrored(mirrored(rows)).nan_to_num(), rows.nan_to_num())
