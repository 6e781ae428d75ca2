"""Along which line pixels look: what a camera on the hand sees turns and travels with the hand."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from wvl_ros.policies.sight import CENTER, HAND_HEIGHT, UNIT, CarriedSight, FixedSight, across
from wvl_ros.worlds.droid import euler_to_matrix

PIXELS = torch.tensor([[0.0, 0.0], [0.5, -0.5], [-1.0, 1.0]])


def state(position: tuple[float, float, float], euler: tuple[float, float, float] = (np.pi, 0.0, 0.0)) -> torch.Tensor:
    """A state (1, 10) of a hand, which points straight down unless told."""
    rotation = euler_to_matrix(np.array(euler))
    return torch.tensor(np.concatenate([position, rotation[:, 0], rotation[:, 1], [0.0]])[None]).float()


def test_a_camera_that_stands_still_does_not_mind_the_hand() -> None:
    sight = FixedSight(2)
    assert torch.equal(sight(PIXELS, state((0.5, 0.0, 0.3))), sight(PIXELS, state((0.4, 0.2, 0.1))))
    # Things are first looked for where the hand mostly is; what is higher is seen elsewhere along the line.
    at = sight.at(PIXELS, torch.tensor([HAND_HEIGHT, 0.25]))
    assert torch.allclose(at[0], sight(PIXELS, state((0.5, 0.0, 0.3)))[0, 0])
    assert (at[0] - at[1]).norm(dim=-1).min() > 1e-3


@given(st.floats(-0.2, 0.2), st.floats(-0.2, 0.2), st.floats(-np.pi, np.pi))
def test_what_a_carried_camera_sees_travels_and_turns_with_the_hand(x: float, y: float, turn: float) -> None:
    torch.manual_seed(0)
    sight = CarriedSight(2)
    here = sight(PIXELS, state((0.5, 0.0, 0.3)))[0, 0]
    there = sight(PIXELS, state((0.5 + x, y, 0.3), (np.pi, 0.0, turn)))[0, 0]
    turned = torch.tensor([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]).float()
    assert torch.allclose(there, here @ turned.T + torch.tensor([x, y]) / UNIT, atol=1e-4)


def test_a_carried_camera_sees_less_of_the_table_the_lower_it_is() -> None:
    torch.manual_seed(0)
    sight = CarriedSight(1)
    low, high = (sight(PIXELS, state((0.5, 0.0, z)))[0, 0] for z in (0.13, 0.23))
    below = across(torch.tensor([0.5, 0.0]))
    assert torch.allclose(2 * (low - below), high - below, atol=1e-4)  # of 0.1 and 0.2 m above what lies there


def test_where_a_tilted_camera_looks_lies_on_its_line_and_on_the_plane_of_the_thing() -> None:
    torch.manual_seed(0)
    sight = CarriedSight(2)
    torch.nn.init.normal_(sight.level)
    torch.nn.init.normal_(sight.origin, std=0.03)
    position, euler = (0.45, 0.1, 0.3), (np.pi + 0.3, -0.2, 0.7)
    met = sight(PIXELS, state(position, euler))[0]
    rotation = torch.tensor(euler_to_matrix(np.array(euler))).float()
    eye = torch.tensor(position) + rotation @ sight.origin
    with torch.no_grad():
        ray = sight.ray(PIXELS)
        line = torch.cat([ray[:, :2], 1 + 0.1 * ray[:, 2:]], 1) @ rotation.T
    for level, places in zip(sight.level, met, strict=True):
        point = torch.cat([places * UNIT + torch.tensor(CENTER), (0.03 + 0.05 * level).expand(len(PIXELS), 1)], 1)
        assert torch.linalg.cross(point - eye, line).abs().max() < 1e-5


def test_a_carried_camera_that_looks_level_sees_no_table_but_harms_nothing() -> None:
    sight = CarriedSight(1)
    places = sight(PIXELS, state((0.5, 0.0, 0.3), (np.pi / 2, 0.0, 0.0)))
    places.sum().backward()
    assert places.isfinite().all()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in sight.parameters())
