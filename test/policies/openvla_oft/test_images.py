"""Camera images as OpenVLA-OFT sees them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from wvl_ros.errors import ObservationError
from wvl_ros.policies.openvla_oft.images import middle, prepare


def _crop_and_resize(image: np.ndarray, area: float) -> np.ndarray:
    """TensorFlow's formula, pixel by pixel, with its way from floats to bytes."""
    size = image.shape[0]
    side = math.sqrt(area)
    first = (1 - side) / 2
    out = np.empty_like(image)
    for row in range(size):
        for column in range(size):
            y = first * (size - 1) + row * side
            x = first * (size - 1) + column * side
            top, left = int(y), int(x)
            bottom, right = min(top + 1, size - 1), min(left + 1, size - 1)
            pixels = image.astype(float) / 255
            upper = pixels[top, left] * (1 - x + left) + pixels[top, right] * (x - left)
            lower = pixels[bottom, left] * (1 - x + left) + pixels[bottom, right] * (x - left)
            out[row, column] = np.clip((upper * (1 - y + top) + lower * (y - top)) * 255.5, 0, 255)
    return out


def test_the_middle_is_tensorflows() -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    ours = middle(torch.from_numpy(image.transpose(2, 0, 1).copy())).permute(1, 2, 0).numpy()
    difference = np.abs(ours.astype(int) - _crop_and_resize(image, 0.9))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.01  # where rounding decides


@pytest.mark.parametrize(("height", "width"), [(180, 320), (480, 640), (28, 28), (10, 12)])
def test_any_image_becomes_a_square(height: int, width: int) -> None:
    image = np.full((height, width, 3), (0, 128, 255), np.uint8)
    for crop in (True, False):
        square = prepare(image, 28, crop, "wrist_image_left")
        assert square.shape == (3, 28, 28)
        assert square.dtype == torch.uint8
        np.testing.assert_array_equal(square.flatten(1).unique(dim=1).flatten(), [0, 128, 255])


def test_the_border_is_cropped_and_the_middle_stays() -> None:
    image = np.zeros((224, 224, 3), np.uint8)
    image[:5] = 255
    image[112:] = 100
    whole, cropped = (prepare(image, 224, crop, "wrist_image_left") for crop in (False, True))
    np.testing.assert_array_equal(whole[0], image[..., 0])
    assert not (cropped == 255).any()
    assert cropped[0, 110, 5] == 0
    assert cropped[0, 113, 5] == 100


@pytest.mark.parametrize("image", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3)), np.zeros((0, 8, 3), np.uint8)])
def test_what_is_no_image_is_refused(image: np.ndarray) -> None:
    with pytest.raises(ObservationError, match="'wrist_image_left' should be uint8 HxWx3"):
        prepare(image, 28, True, "wrist_image_left")
