"""What the hand touches: the gripper's next position, and a motion that all views agree on."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wvl_ros.training.world_model_settings import rig_facts
from wvl_ros.world_model.contact import BINS, CELL, CELLS, Contact, ContactNetwork, Footprint, likeliest, spread
from wvl_ros.world_model.geometry import CameraGeometry
from wvl_ros.world_model.kinematics import TCP_OFFSET, Kinematics

GEOMETRY = CameraGeometry(rig_facts("tabletop")["cameras"], 16, 64)
angles, metres = st.floats(-3, 3), st.floats(-0.3, 0.3)


def _arm(x: float, y: float, turn: float = 0.0, height: float = 0.02) -> Kinematics:
    pose = torch.tensor([[x, y, height + TCP_OFFSET, math.pi, 0.0, turn]])
    return Kinematics.at_rest(pose, torch.zeros(1, 1), torch.cat([pose, torch.ones(1, 1)], 1))


@given(st.floats(0, 1))
def test_a_position_spread_over_places_is_that_position(position: float) -> None:
    chances = spread(torch.tensor([[position]]))
    assert chances.shape == (1, BINS)
    assert float(chances.sum()) == pytest.approx(1, abs=1e-5)
    assert float(likeliest(chances.clamp(min=1e-9).log())) == pytest.approx(position, abs=1e-4)


def test_of_two_ends_one_is_taken_and_not_the_middle() -> None:
    chances = 0.45 * spread(torch.tensor([[0.54]])) + 0.55 * spread(torch.tensor([[1.0]]))
    assert float(likeliest(chances.clamp(min=1e-9).log())) == pytest.approx(1.0, abs=0.01)


@given(angles, metres, metres)
def test_what_is_seen_from_the_hand_is_found_again_on_the_table(turn: float, x: float, y: float) -> None:
    below = Footprint.of(_arm(0.5, 0.1, turn))
    spots = torch.tensor([[[0.5 + x, 0.1 + y]]])
    local = below.local(spots)
    assert torch.allclose(below.spots(local), spots, atol=1e-6)
    assert float(local.norm()) == pytest.approx(math.hypot(x, y), abs=1e-5)


@given(angles, metres, metres, st.floats(-0.4, 0.4))
def test_what_moved_was_where_its_motion_began(turn: float, along: float, across: float, turned: float) -> None:
    below, about = Footprint.of(_arm(0.5, 0.0, turn)), torch.tensor([[0.02, 0.01]])
    motion = torch.tensor([[along, across, turned]])
    contact = Contact(torch.zeros(1, BINS), motion, torch.zeros(1, CELLS, CELLS), about, below)
    corner = torch.tensor([[0.03, 0.0]])
    cosine, sine = math.cos(turned), math.sin(turned)
    after = about + motion[:, :2] + corner @ torch.tensor([[cosine, sine], [-sine, cosine]])
    was = below.local(contact.before(below.spots(after[:, None])))[:, 0]
    assert torch.allclose(was, about + corner, atol=1e-5)


@pytest.mark.parametrize("turn", [0.0, 0.7, -1.3])
def test_an_object_looks_alike_from_the_hand_wherever_it_lies(turn: float) -> None:
    network = ContactNetwork(GEOMETRY, 48, 16, 3)
    cells = network.get_buffer("cells")
    marks = []
    for x, y in ((0.45, -0.05), (0.55, 0.1)):
        arm = _arm(x, y, turn)
        thing = Footprint.of(arm).spots(torch.tensor([[[0.018, -0.03]]]))
        point = torch.cat([thing, torch.full((1, 1, 1), 0.02)], 2)
        images = torch.full((1, 3, 3, 64, 64), -1.0)
        for view in range(3):
            place, inside = GEOMETRY.places_of(view, point, arm)
            if bool(inside):
                column, row = ((place[0, 0] + 1) * 32).long().clamp(0, 63).tolist()
                images[0, view, :, row - 1 : row + 2, column - 1 : column + 2] = 1.0
        seen = network._see(Footprint.of(arm), images, images, arm, arm)
        for view in (0, 1):
            bright = (seen[0, 3 * view].flatten() > 0).float()
            middle = (bright @ cells) / bright.sum()
            assert float((middle - torch.tensor([0.018, -0.03])).norm()) < 2 * CELL, view
        marks.append(seen)
    fingers = [seen[0, -4:-2].flatten(1) for seen in marks]
    assert torch.allclose(*fingers, atol=1e-4)


def test_it_learns_to_see_whether_something_is_between_the_fingers() -> None:
    torch.manual_seed(0)
    network = ContactNetwork(GEOMETRY, 48, 16, 3)
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(0)
    arm = Kinematics(*(part.repeat(32, *[1] * (part.dim() - 1)) for part in _arm(0.5, 0.0)))

    def draw() -> tuple[torch.Tensor, torch.Tensor]:
        images = 0.1 * torch.randn(32, 3, 3, 64, 64, generator=generator)
        wrist = 0.1 * torch.randn(32, 16, 16, 48, generator=generator)
        something = torch.rand(32, generator=generator) < 0.5
        wrist[something, 12:14, 7:9, :6] += 1.0
        told = network(images, images, arm, arm, arm, torch.ones(32, 3), wrist, torch.ones(32))
        return told.grip, torch.where(something, 0.5, 1.0)[:, None]

    for _ in range(60):
        logits, true = draw()
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits, spread(true)).backward()
        optimizer.step()
    logits, true = draw()
    assert float(((likeliest(logits) - true).abs() < 0.1).float().mean()) > 0.9


def test_without_calibration_nothing_is_said_to_move() -> None:
    network = ContactNetwork(GEOMETRY, 48, 16, 3)
    torch.nn.init.normal_(network.motion.weight)
    images, wrist = torch.rand(2, 3, 3, 64, 64), torch.rand(2, 16, 16, 48)
    arm = Kinematics(*(part.repeat(2, *[1] * (part.dim() - 1)) for part in _arm(0.5, 0.0)))
    told = network(images, images, arm, arm, arm, torch.ones(2, 3), wrist, torch.tensor([0.0, 1.0]))
    assert float(told.motion[0].detach().abs().max()) == 0.0
    assert float(told.motion[1].detach().abs().max()) > 0.0
