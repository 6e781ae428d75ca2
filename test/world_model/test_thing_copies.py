"""Things of the first frame laid where they are now: where they are shown, in what colours, and what hides what."""

from __future__ import annotations

import math

import pytest
import torch

from wvl_ros.training.world_model_settings import rig_facts
from wvl_ros.world_model.geometry import CameraGeometry
from wvl_ros.world_model.kinematics import TCP_OFFSET, Kinematics
from wvl_ros.world_model.thing_copies import lay_things
from wvl_ros.world_model.things import MOST, Things

GEOMETRY = CameraGeometry(rig_facts("tabletop")["cameras"], 16, 64)


def _arm(x: float, y: float, height: float = 0.25) -> Kinematics:
    pose = torch.tensor([[x, y, height + TCP_OFFSET, math.pi, 0.0, math.pi / 4]])
    return Kinematics.at_rest(pose, torch.zeros(1, 1), torch.cat([pose, torch.zeros(1, 1)], 1))


def _things(*places: tuple[float, float, float], yaw: float = 0.0, half: float = 0.02) -> Things:
    place, there = torch.zeros(1, MOST, 3), torch.zeros(1, MOST)
    for i, spot in enumerate(places):
        place[0, i], there[0, i] = torch.tensor(spot), 1
    return Things.at_rest(place, torch.full((1, MOST), yaw), torch.full((1, MOST), half), there)


def _painted(things: Things, arm: Kinematics) -> torch.Tensor:
    """Images (1, V, 3, S, S): grey, each thing a red disk around its middle, where the cameras show that."""
    images = torch.zeros(1, 3, 3, 64, 64)
    for view in range(3):
        for n in range(int(things.there.sum())):
            middle, inside = GEOMETRY.places_of(view, things.place[:, n : n + 1], arm)
            gap = (GEOMETRY.still(1)[0] - middle[0, 0]).norm(dim=-1)
            if bool(inside.all()):
                images[0, view, 0][gap < 0.3] = 1.0
    return images


@pytest.mark.parametrize("view", [0, 1, 2])
def test_a_thing_is_shown_where_it_is_now_in_the_colours_of_the_first_frame(view: int) -> None:
    first_arm, arm = _arm(0.5, 0.0), _arm(0.52, 0.02)
    start, now = _things((0.5, 0.0, 0.02)), _things((0.54, 0.05, 0.02), yaw=0.4)
    pictures, masks = lay_things(GEOMETRY, _painted(start, first_arm), first_arm, arm, start, now)
    middle, _ = GEOMETRY.places_of(view, now.place[:, :1], arm)
    rows, columns = (masks[0, view] > 0.5).nonzero(as_tuple=True)
    shown = torch.stack([columns.float().mean(), rows.float().mean()])
    assert (
        shown - (middle[0, 0] + 1) * 32 + 0.5
    ).abs().max() < 2.5  # pixels; the upper side is seen more than the lower
    assert pictures[0, view, 0][masks[0, view] > 0.9].mean() > 0.8
    assert pictures[0, view, 1:].abs().max() < 0.2
    assert bool((pictures[0, view][:, masks[0, view] == 0] == 0).all())


def test_where_nothing_moved_all_is_as_it_was() -> None:
    arm, things = _arm(0.45, 0.1), _things((0.5, 0.0, 0.02), (0.55, 0.1, 0.02))
    first = torch.rand(1, 3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    pictures, masks = lay_things(GEOMETRY, first, arm, arm, things, things)
    where = (masks > 0)[:, :, None].expand_as(first)
    assert bool(where.any())
    assert (pictures - first)[where].abs().max() < 0.01


def test_what_lies_on_another_thing_hides_it_from_above() -> None:
    arm = _arm(0.5, 0.0)
    start = _things((0.5, 0.0, 0.02), (0.5, 0.1, 0.02))
    first = torch.zeros(1, 3, 3, 64, 64)
    middle, _ = GEOMETRY.places_of(2, start.place[:, 1:2], arm)
    first[0, 2, 1][(GEOMETRY.still(1)[0] - middle[0, 0]).norm(dim=-1) < 0.25] = 1.0  # only the second is green
    stacked = _things((0.5, 0.0, 0.02), (0.5, 0.0, 0.06))
    pictures, _ = lay_things(GEOMETRY, first, arm, arm, start, stacked)
    middle, _ = GEOMETRY.places_of(2, stacked.place[:, 1:2], arm)
    column, row = ((middle[0, 0] + 1) * 32).long().tolist()
    assert float(pictures[0, 2, 1, row, column]) > 0.8


def test_what_the_wrist_did_not_see_is_taken_from_a_fixed_view() -> None:
    start, now = _things((0.6, 0.2, 0.02)), _things((0.45, -0.1, 0.02))
    first_arm, arm = _arm(0.45, -0.15, 0.1), _arm(0.45, -0.1)
    assert not GEOMETRY.places_of(2, start.place[:, :1], first_arm)[1].any()
    pictures, masks = lay_things(GEOMETRY, _painted(start, first_arm), first_arm, arm, start, now)
    assert pictures[0, 2, 0][masks[0, 2] > 0.9].mean() > 0.8


def test_nothing_is_shown_of_nothing_nor_by_a_camera_that_is_not_calibrated() -> None:
    arm, first = _arm(0.5, 0.0), torch.rand(1, 3, 3, 64, 64)
    for geometry, things in ((GEOMETRY, _things()), (CameraGeometry([None] * 3, 16, 64), _things((0.5, 0.0, 0.02)))):
        pictures, masks = lay_things(geometry, first, arm, arm, things, things)
        assert pictures.shape == first.shape
        assert not masks.any()
