"""The next frame is mixed of copies: which one a pixel takes decides what is seen."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from wvl_ros.world_model import composition, patches
from wvl_ros.world_model.contact import BINS, CELL, CELLS, Contact, Footprint
from wvl_ros.world_model.geometry import CameraGeometry
from wvl_ros.world_model.kinematics import Kinematics

DOWN = {
    "position": [0.5, 0.0, 1.0],
    "rotation": [[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]],
    "fovy_deg": 60.0,
    "parent": "base",
}
PIXEL = float(0.8 * 2 * np.tan(np.pi / 6) / 64)  # m that a pixel of it shows at the height of the arm


def _kinematics(y: float) -> Kinematics:
    pose = torch.tensor([[0.5, y, 0.3, np.pi, 0.0, 0.0]]).repeat(2, 1)
    return Kinematics.at_rest(pose, torch.zeros(2, 1), torch.cat([pose, torch.zeros(2, 1)], 1))


def _arm(y: float) -> torch.Tensor:
    return torch.tensor([[[0.2, y, 0.2], [0.8, y, 0.2]]]).repeat(2, 1, 1)


def _frames() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    last, first = (torch.rand(2, 144, 16, 16, generator=generator) * 2 - 1 for _ in range(2))
    return last, first


def _contact(along: float, across: float, touched: float = -50.0) -> Contact:
    """Something that a hand at (0.5, 0.04) moves by metres along and across its fingers' opening."""
    motion = torch.tensor([[along, across, 0.0]]).repeat(2, 1)
    mask = torch.full((2, CELLS, CELLS), touched)
    return Contact(torch.zeros(2, BINS), motion, mask, torch.zeros(2, 2), Footprint.of(_kinematics(0.04)))


def _mixed(
    choice: int, calibrated: float = 1.0, correction: float = 0.0, contact: Contact | None = None
) -> torch.Tensor:
    geometry = CameraGeometry([DOWN, None, None], 16, 64)
    last, first = _frames()
    hands = (_kinematics(0.0), _kinematics(0.0), _kinematics(0.04))
    pictures = [composition.Picture.of(frame, 4) for frame in (last, first)]
    arms = (_arm(0.0), _arm(3 * PIXEL))
    given = composition.copies(
        geometry, *pictures, *hands, arms, contact or _contact(0.0, 0.0), torch.full((2,), calibrated), 4
    )
    logits = torch.zeros(2, 3, 16, 16, composition.CHOICES, 16)
    logits[..., choice, :] = 50.0
    nothing = torch.zeros(2, 3, 16, 16, 48)
    shift = nothing[..., :2] + correction * torch.tensor([1.0, 0.0])
    drawn = composition.compose(given, nothing + 0.1, logits.flatten(4), shift, 4)
    return composition.frame(drawn)


def test_each_choice_gives_its_own_picture() -> None:
    last, first = _frames()
    assert torch.allclose(_mixed(0), last + 0.1, atol=1e-5)
    assert torch.allclose(_mixed(2), last, atol=1e-5)
    assert torch.allclose(_mixed(3), first, atol=1e-5)
    assert torch.allclose(_mixed(4), _mixed(1), atol=1e-4)  # uncorrected, and no wrist camera that is calibrated


def test_what_the_hand_holds_comes_along_in_a_calibrated_view_only() -> None:
    last, _ = _frames()
    before = patches.from_patches(patches.to_uint8(last), 4).astype(float)
    after = patches.from_patches(patches.to_uint8(_mixed(1)), 4).astype(float)
    assert np.abs(after[:, 0, :, 20:40] - before[:, 0, :, 23:43]).max() < 2  # the base's y points to the left
    assert np.abs(after[:, 1:] - before[:, 1:]).max() < 2
    assert torch.allclose(_mixed(1, calibrated=0.0), last, atol=1e-4)


def test_what_the_hand_touches_moves_by_its_motion_along_the_table() -> None:
    last, _ = _frames()
    before = patches.from_patches(patches.to_uint8(last), 4).astype(float)
    pixel = float(0.98 * 2 * np.tan(np.pi / 6) / 64)  # m that a pixel shows at the height of what is touched
    below = Footprint.of(_kinematics(0.04))
    along, across = below.local(below.center[:, None] + torch.tensor([0.0, 3 * pixel]))[0, 0].tolist()
    contact = _contact(along, across)  # along the base's y, which points to the left in the first view
    after = patches.from_patches(patches.to_uint8(_mixed(5, contact=contact)), 4).astype(float)
    assert np.abs(after[:, 0, 4:60, 4:60] - before[:, 0, 4:60, 7:63]).max() < 3
    assert np.abs(after[:, 1:] - before[:, 1:]).max() < 2  # these cameras are not calibrated
    assert torch.allclose(_mixed(5, calibrated=0.0, contact=contact), last, atol=1e-4)


def test_a_place_that_is_touched_is_likelier_taken_from_there() -> None:
    geometry, contact = CameraGeometry([DOWN, None, None], 16, 64), _contact(0.0, 0.0, 50.0)
    pictures = [composition.Picture.of(frame, 4) for frame in _frames()]
    hands = (_kinematics(0.0), _kinematics(0.0), _kinematics(0.04))
    given = composition.copies(geometry, *pictures, *hands, (_arm(0.0), _arm(0.0)), contact, torch.ones(2), 4)
    where = composition.images(given.mask.repeat(1, 1, 1, 1, 3), 4)[0, 0, 0]
    pixel = float(0.98 * 2 * np.tan(np.pi / 6) / 64)
    _, columns = (where > 0.5).nonzero(as_tuple=True)
    assert float(columns.float().mean()) == pytest.approx(31.5 - 0.04 / pixel, abs=0.6)  # below the hand
    assert float(where.sum()) * pixel**2 == pytest.approx((CELLS * CELL) ** 2, rel=0.15)
    assert float(given.mask[:, 1:].abs().max()) == 0.0


def test_a_correction_moves_what_it_is_told_of_as_a_whole() -> None:
    last, _ = _frames()
    before = patches.from_patches(patches.to_uint8(last), 4).astype(float)
    shift = float(np.arctanh(3 / 64 / composition.REACH))  # 3 pixels to the right of where it would be looked up
    after = patches.from_patches(patches.to_uint8(_mixed(1, 0.0, shift)), 4).astype(float)
    assert np.abs(after[:, :, :, :60] - before[:, :, :, 3:63]).max() < 2


def test_what_is_looked_up_again_and_again_stays_sharp() -> None:
    cube = torch.full((1, 3, 64, 64), -1.0)
    cube[:, :, 28:34, 28:34] = 1.0
    geometry = CameraGeometry([None, None, None], 16, 64)
    contrast = {}
    for sharp in (False, True):
        picture = cube
        for step in range(20):
            place = geometry.still(1) + 2 * 0.4 / 64 * (-1) ** step
            picture = composition.sample(picture, place, sharp).clamp(-1, 1)
        contrast[sharp] = float(picture.amax() - picture.amin()) / 2
    assert contrast[True] > 0.99
    assert contrast[False] < 0.75


def test_a_frame_comes_back_from_views_and_images() -> None:
    last, _ = _frames()
    views = composition.views(last)
    assert torch.equal(composition.frame(views), last)
    assert torch.equal(composition.unimages(composition.images(views, 4), 4), views)
    pixels = composition.images(views, 4)[0, 2].permute(1, 2, 0)
    shown = patches.from_patches(patches.to_uint8(last), 4)[0, 2]
    assert np.abs((pixels.numpy() + 1) * 127.5 - shown).max() <= 0.5
