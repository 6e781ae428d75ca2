"""Where things were at every step of an episode."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wvl_ros.training.things import COLUMNS, MOST, Things, mirrored, pack, turn_between


def test_what_an_episode_says_is_found_again() -> None:
    poses = np.random.default_rng(0).uniform(size=(4, 3, 5))
    things = Things.unpack(torch.from_numpy(pack(poses, 4)))
    assert things.place[2, 1].tolist() == pytest.approx(poses[2, 1, :2])
    for column, part in enumerate((things.height, things.yaw, things.half), 2):
        assert part[:, :3].numpy() == pytest.approx(poses[..., column])
        assert bool(part[:, 3:].isnan().all())
    many = np.ones((4, MOST + 2, 5))
    assert not np.isnan(pack(many, 4)).any()


def test_nothing_is_known_of_a_real_robots_things() -> None:
    for objects in (None, np.empty((4, 0, 5))):
        rows = pack(objects, 4)
        assert rows.shape == (4, COLUMNS)
        assert np.isnan(rows).all()


@given(st.lists(st.floats(-1, 1), min_size=5, max_size=5))
def test_a_mirror_shows_left_as_right(pose: list[float]) -> None:
    rows = torch.from_numpy(pack(np.array([[pose]]), 1))
    thing, image = Things.unpack(rows), Things.unpack(mirrored(rows))
    assert image.place[0, 0].tolist() == pytest.approx([pose[0], -pose[1]])
    assert float(image.yaw[0, 0]) == -float(thing.yaw[0, 0])
    assert float(image.height[0, 0]) == float(thing.height[0, 0])
    assert torch.equal(mirrored(mirrored(rows)).nan_to_num(), rows.nan_to_num())


@given(st.floats(-10, 10), st.floats(-0.7, 0.7), st.integers(-4, 4))
def test_a_square_that_turns_by_quarters_has_not_turned(yaw: float, turn: float, quarters: int) -> None:
    before, after = torch.tensor([yaw]), torch.tensor([yaw + turn + quarters * np.pi / 2])
    assert float(turn_between(before, after)) == pytest.approx(turn, abs=1e-4)
