"""The state of the things on the table, as a rollout carries it along."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wvl_ros.world_model.things import COLUMNS, MOST, Things, turn_between


def test_things_come_back_from_their_packed_form() -> None:
    parts = [torch.rand(3, MOST, 3), torch.rand(3, MOST), torch.rand(3, MOST), torch.rand(3, MOST, 3)]
    things = Things(*parts, torch.rand(3, MOST), (torch.rand(3, MOST) < 0.5).float())
    packed = things.pack()
    assert packed.shape == (3, COLUMNS)
    assert all(torch.equal(a, b) for a, b in zip(things, Things.unpack(packed), strict=True))
    assert not Things.none(2).there.any()


@given(st.floats(-10, 10), st.floats(-0.7, 0.7), st.integers(-4, 4))
def test_a_square_that_turns_by_quarters_has_not_turned(yaw: float, turn: float, quarters: int) -> None:
    before, after = torch.tensor([yaw]), torch.tensor([yaw + turn + quarters * math.pi / 2])
    assert float(turn_between(before, after)) == pytest.approx(turn, abs=1e-4)
