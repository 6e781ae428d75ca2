"""The grip: positions of the gripper told as probabilities, and a decision between closing on something or nothing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wvl_ros.world_model.grip import BINS, Grip, likeliest, spread
from wvl_ros.world_model.kinematics import Kinematics


@given(st.floats(0, 1))
def test_a_position_spread_over_places_is_that_position(position: float) -> None:
    chances = spread(torch.tensor([[position]]))
    assert chances.shape == (1, BINS)
    assert float(chances.sum()) == pytest.approx(1, abs=1e-5)
    assert float(likeliest(chances.clamp(min=1e-9).log())) == pytest.approx(position, abs=1e-4)


def test_of_two_ends_one_is_taken_and_not_the_middle() -> None:
    chances = 0.45 * spread(torch.tensor([[0.54]])) + 0.55 * spread(torch.tensor([[1.0]]))
    assert float(likeliest(chances.clamp(min=1e-9).log())) == pytest.approx(1.0, abs=0.01)


def test_it_learns_to_see_whether_something_is_between_the_fingers() -> None:
    torch.manual_seed(0)
    grip = Grip(12, 8, 3)
    optimizer = torch.optim.Adam(grip.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(0)

    def draw(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        views = 0.1 * torch.randn(count, 3, 8, 8, 12, generator=generator)
        something = torch.rand(count, generator=generator) < 0.5
        views[something, 2, 4:6, 3:5, :6] += 1.0  # in the wrist view
        poses, open_ = torch.zeros(count, 6), torch.zeros(count, 1)
        arm = Kinematics.at_rest(poses, open_, torch.cat([poses, open_ + 1], 1))
        logits = grip(views, torch.zeros(count, 3, 8, 8, 8), arm, arm, torch.ones(count, 3))
        return logits, torch.where(something, 0.5, 1.0)[:, None]

    for _ in range(150):
        logits, true = draw(32)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits, spread(true)).backward()
        optimizer.step()
    logits, true = draw(200)
    assert float(((likeliest(logits) - true).abs() < 0.1).float().mean()) > 0.95
