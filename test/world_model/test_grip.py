"""The gripper's next position by the wrist's view."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wvl_ros.world_model.grip import BINS, likeliest, spread


@given(st.floats(0, 1))
def test_a_position_spread_over_places_is_that_position(position: float) -> None:
    chances = spread(torch.tensor([[position]]))
    assert chances.shape == (1, BINS)
    assert float(chances.sum()) == pytest.approx(1, abs=1e-5)
    assert float(likeliest(chances.clamp(min=1e-9).log())) == pytest.approx(position, abs=1e-4)


def test_of_two_ends_one_is_taken_and_not_the_middle() -> None:
    chances = 0.45 * spread(torch.tensor([[0.54]])) + 0.55 * spread(torch.tensor([[1.0]]))
    assert float(likeliest(chances.clamp(min=1e-9).log())) == pytest.approx(1.0, abs=0.01)
