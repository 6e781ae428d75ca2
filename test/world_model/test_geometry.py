"""Calibrated cameras: where things appear, and what a missing or wrong calibration does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from wvl_ros.errors import ConfigError
from wvl_ros.world_model.composition import sample
from wvl_ros.world_model.geometry import CameraGeometry
from wvl_ros.world_model.kinematics import TCP_OFFSET, Kinematics

# One metre above the table's centre, looking straight down, image up along the base's x axis.
DOWN: dict[str, Any] = {
    "position": [0.5, 0.0, 1.0],
    "rotation": [[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]],
    "fovy_deg": 60.0,
    "parent": "base",
}
# On the flange, looking along its z axis.
WRIST: dict[str, Any] = {
    "position": [0.05, 0.0, 0.0],
    "rotation": [[1.0, 0.0, 0.0], [0.0, -1.0, 0.0], [0.0, 0.0, -1.0]],
    "fovy_deg": 80.0,
    "parent": "flange",
}


def _kinematics(x: float, y: float, z: float = 0.4) -> Kinematics:
    pose = torch.tensor([[x, y, z, np.pi, 0.0, 0.0]])
    return Kinematics.at_rest(pose, torch.zeros(1, 1), torch.cat([pose, torch.zeros(1, 1)], 1))


def test_the_gripper_is_marked_where_the_camera_sees_it() -> None:
    geometry = CameraGeometry([DOWN, None, WRIST], 16, 64)
    maps = geometry.maps(_kinematics(0.5 + 0.15, 0.0))
    shadow = maps[0, 0, 3]
    row, column = divmod(int(shadow.argmax()), 16)
    # 0.15 m towards the image's top of a view that is 1.155 m high: 0.13 of its height above the middle.
    assert column in (7, 8)
    assert row == int((0.5 - 0.15 / (2 * np.tan(np.pi / 6))) * 16)
    assert float(maps[0, 1].abs().max()) == 0.0  # the second camera is not calibrated


def test_each_place_is_told_how_it_lies_to_the_fingertips() -> None:
    geometry = CameraGeometry([DOWN, None, WRIST], 16, 64)
    on, above = (geometry.reach(_kinematics(0.65, 0.1, TCP_OFFSET + z)) for z in (0.02, 0.08))
    assert on.shape == (1, 3, 4, 16, 16)
    assert float(on[0, 1].abs().max()) == 0.0  # the second camera is not calibrated
    row, column = divmod(int(on[0, 0, 2].argmax()), 16)
    scale = 16 / (2 * 0.98 * np.tan(np.pi / 6))  # grid cells a metre, 0.02 m above the table
    assert (row, column) == (int(8 - 0.15 * scale), int(8 - 0.1 * scale))
    # The fingers open along the base's y, which is the image's horizontal.
    along, across = on[0, 0, 0, row], on[0, 0, 1, :, column]
    for line, here in ((along, column), (across, row)):
        assert float(line[0] * line[-1]) < -0.9
        assert line.sign().diff().ne(0).sum() == 1
        assert abs(float(line[here])) < 0.7
    assert float(on[0, :, 3].abs().max()) < 1e-5  # as high as the middle of an object
    torch.testing.assert_close(above[0, 0, 3], above[0, 0, 2] * np.tanh(3.0), rtol=1e-4, atol=1e-6)
    wrist = geometry.reach(_kinematics(0.65, 0.1, 0.3))[0, 2, 2]
    assert 0.5 < float(wrist.max()) <= 1.0  # below the hand, wherever it is


def test_the_wrist_view_moves_with_the_arm_over_the_table() -> None:
    geometry = CameraGeometry([None, None, WRIST], 16, 64)
    image = torch.rand(1, 3, 64, 64)
    here, there = _kinematics(0.5, 0.0), _kinematics(0.55, 0.0)
    assert torch.allclose(sample(image, geometry.places(here, here)[0]), image, atol=1e-3)
    places, inside = geometry.places(here, there)
    moved = sample(image, places)
    assert inside[:, 20:40, :40].all()
    assert not inside[:, :, 60:].any()  # what comes into view had not been seen
    shift = 0.05 / 0.4 / (2 * np.tan(np.deg2rad(40))) * 64  # pixels the table moves
    whole = round(shift)
    columns_gap = (moved[0, :, 20:40, 20:40] - image[0, :, 20:40, 20 + whole : 40 + whole]).abs().mean()
    unmoved_gap = (moved[0, :, 20:40, 20:40] - image[0, :, 20:40, 20:40]).abs().mean()
    assert columns_gap < unmoved_gap


def test_what_stands_on_the_table_moves_further_in_the_wrist_view_than_the_table() -> None:
    geometry = CameraGeometry([None, None, WRIST], 16, 64)
    here, there = _kinematics(0.5, 0.0), _kinematics(0.53, 0.02)
    moved = []
    for height in (0.0, 0.04):
        places, inside = geometry.places(here, there, height)
        assert inside[0, 32, 32]
        moved.append((places - geometry.still(1))[0, 32, 32].norm())
    camera = 0.4  # m of the wrist's camera above the table, see WRIST
    assert float(moved[1] / moved[0]) == pytest.approx(camera / (camera - 0.04), rel=0.02)


def test_a_fixed_view_moves_as_the_nearest_part_of_the_arm_in_it() -> None:
    geometry = CameraGeometry([DOWN, None, WRIST], 16, 64)
    # An upper part that stays and a lower one that swings about the joint between them.
    now = torch.tensor([[[0.3, 0.0, 0.0], [0.5, 0.0, 0.0], [0.7, 0.0, 0.0]]])
    then = torch.tensor([[[0.3, 0.0, 0.0], [0.5, 0.0, 0.0], [0.5, 0.2, 0.0]]])
    places, still = geometry.places_of_arm(0, now, then)[0], geometry.still(1)[0]
    height = 2 * np.tan(np.pi / 6)  # m that the image is high at the table

    def pixel(x: float, y: float) -> tuple[int, int]:
        return round((0.5 - (x - 0.5) / height) * 64 - 0.5), round((0.5 - y / height) * 64 - 0.5)

    upper, lower, was = pixel(0.35, 0.0), pixel(0.5, 0.15), pixel(0.65, 0.0)
    assert torch.allclose(places[upper], still[upper], atol=1e-5)
    assert torch.allclose(places[lower], still[was], atol=2 / 64)
    assert torch.equal(geometry.places_of_arm(1, now, then), geometry.still(1))  # not calibrated


def test_a_part_that_is_seen_end_on_does_not_blow_up() -> None:
    geometry = CameraGeometry([DOWN, None, WRIST], 16, 64)
    now = torch.tensor([[[0.5, 0.0, 0.3], [0.5, 0.0, 0.1]]])
    places = geometry.places_of_arm(0, now, now + 0.02)
    assert torch.isfinite(places).all()
    assert (places - geometry.still(1)).abs().max() < 0.5


def test_the_fixed_camera_shows_the_wrist_view_the_table_below() -> None:
    geometry = CameraGeometry([DOWN, None, WRIST], 16, 64)
    here = _kinematics(0.5, 0.1)
    places, inside = geometry.places_in(0, here)
    camera = torch.tensor([[[0.55, 0.1, 0.0]]])  # the point of the table right below the wrist camera
    assert inside.all()
    assert torch.allclose(places[0, 31:33, 31:33].mean((0, 1)), 2 * geometry.project(0, camera)[0, 0], atol=1e-2)
    assert not geometry.places_in(1, here)[1].any()  # that one is not calibrated


def test_without_calibration_nothing_is_warped() -> None:
    geometry = CameraGeometry([None, None, None], 16, 64)
    image = torch.rand(1, 3, 64, 64)
    places = geometry.places(_kinematics(0.5, 0.0), _kinematics(0.6, 0.1))[0]
    assert torch.allclose(sample(image, places), image, atol=1e-5)


@pytest.mark.parametrize("broken", [DOWN | {"parent": "flange"}, {k: v for k, v in DOWN.items() if k != "fovy_deg"}])
def test_a_wrong_calibration_is_refused(broken: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="amera 0"):
        CameraGeometry([broken, None, None], 16, 64)
