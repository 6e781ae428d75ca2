"""The next frame is mixed of copies: which one a pixel takes decides what is seen."""

from __future__ import annotations

import numpy as np
import torch

from wvl_ros.world_model import composition, patches
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


def _mixed(choice: int, calibrated: float = 1.0, correction: float = 0.0, sure: float = 0.0) -> torch.Tensor:
    geometry = CameraGeometry([DOWN, None, None], 16, 64)
    last, first = _frames()
    hands = (_kinematics(0.0), _kinematics(0.0), _kinematics(0.04))
    pictures = [composition.Picture.of(frame, 4) for frame in (last, first)]
    arms = (_arm(0.0), _arm(3 * PIXEL))
    laid = (torch.full((2, 3, 3, 64, 64), 0.5), torch.full((2, 3, 64, 64), sure))
    given = composition.copies(geometry, *pictures, *hands, arms, laid, torch.full((2,), calibrated), 4)
    logits = torch.zeros(2, 3, 16, 16, composition.CHOICES, 16)
    if choice >= 0:
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


def test_things_are_shown_as_they_were_laid_where_cameras_are_calibrated() -> None:
    last, _ = _frames()
    assert torch.allclose(_mixed(5), torch.full_like(last, 0.5), atol=1e-4)
    assert torch.allclose(_mixed(5, calibrated=0.0), last, atol=1e-4)


def test_a_pixel_that_shows_a_thing_is_likelier_taken_from_there() -> None:
    weak = {sure: float((_mixed(-1, sure=sure) - 0.5).abs().mean()) for sure in (0.0, 1.0)}
    assert weak[1.0] < 0.05 * weak[0.0]


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
