"""What is touched in a frame: which thing that is, and where it goes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wvl_ros.training.touched import TOUCHED, Touched, mirrored, touched, turn_between


def _still(steps: int, *things: tuple[float, float, float, float, float]) -> np.ndarray:
    return np.repeat(np.array([things]), steps, 0)


def test_what_moves_comes_before_what_is_nearest() -> None:
    objects = _still(7, (0.5, 0.0, 0.02, 0.1, 0.02), (0.55, 0.0, 0.025, 0.0, 0.025))
    tips = np.tile([0.5, 0.0, 0.02], (7, 1))
    nearest = Touched.unpack(torch.from_numpy(touched(objects, tips, 3)))
    assert nearest.before[0].tolist() == pytest.approx([0.5, 0.0, 0.1])
    assert nearest.half[0] == pytest.approx(0.02)
    objects[3:, 1, 0] += 0.03
    moving = Touched.unpack(torch.from_numpy(touched(objects, tips, 3)))
    assert moving.before[0].tolist() == pytest.approx([0.55, 0.0, 0.0])
    assert moving.after[0].tolist() == pytest.approx([0.58, 0.0, 0.0])
    assert (float(moving.height[0]), float(moving.half[0])) == pytest.approx((0.025, 0.025))
    assert moving.after[3].tolist() == pytest.approx([0.5, 0.0, 0.1])  # it lies still again
    assert bool(moving.before[4:].isnan().all())  # the next frame would be after the end
    objects[3:, 1, 0] += 0.5  # something far away moves by itself
    assert touched(objects, tips, 3)[0, 0] == pytest.approx(0.5)


def test_nothing_is_known_of_a_real_robots_things() -> None:
    for objects in (None, np.empty((4, 0, 5))):
        rows = touched(objects, np.zeros((4, 3)), 3)
        assert rows.shape == (4, TOUCHED)
        assert np.isnan(rows).all()


@given(st.lists(st.floats(-1, 1), min_size=TOUCHED, max_size=TOUCHED))
def test_a_mirror_shows_left_as_right(row: list[float]) -> None:
    rows = torch.tensor([row])
    thing, image = Touched.unpack(rows), Touched.unpack(mirrored(rows))
    assert image.before[0].tolist() == pytest.approx([row[0], -row[1], -row[2]])
    assert image.after[0, 1] == -thing.after[0, 1]
    assert torch.equal(mirrored(mirrored(rows)), rows)


@given(st.floats(-10, 10), st.floats(-0.7, 0.7), st.integers(-4, 4))
def test_a_square_that_turns_by_quarters_has_not_turned(yaw: float, turn: float, quarters: int) -> None:
    before, after = torch.tensor([yaw]), torch.tensor([yaw + turn + quarters * np.pi / 2])
    assert float(turn_between(before, after)) == pytest.approx(turn, abs=1e-4)
