"""Pictures for the policy: whole, undistorted, in the middle of black."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wvl_ros.policies.openpi.images import resize_with_pad


@pytest.mark.parametrize(
    ("height", "width", "rows", "columns"),
    [
        (180, 320, (49, 175), (0, 224)),  # 126 rows
        (192, 320, (45, 179), (0, 224)),  # 134.4 rows, rounded down
        (720, 1280, (49, 175), (0, 224)),
        (128, 128, (0, 224), (0, 224)),
        (100, 50, (0, 224), (56, 168)),
        (224, 224, (0, 224), (0, 224)),
    ],
)
def test_the_picture_lies_in_the_middle(
    height: int, width: int, rows: tuple[int, int], columns: tuple[int, int]
) -> None:
    padded = resize_with_pad(np.full((height, width, 3), 200, np.uint8))
    wanted = np.zeros((224, 224, 3), np.uint8)
    wanted[rows[0] : rows[1], columns[0] : columns[1]] = 200
    np.testing.assert_array_equal(padded, wanted)


def test_sides_stay_where_they_are_and_colours_too() -> None:
    image = np.zeros((180, 320, 3), np.uint8)
    image[:90, :160] = [250, 10, 30]
    padded = resize_with_pad(image)
    np.testing.assert_array_equal(padded[60, 20], [250, 10, 30])
    assert not padded[60, 200].any()
    assert not padded[160, 20].any()


@given(st.integers(1, 400), st.integers(1, 400))
@settings(max_examples=40)
def test_any_shape_fits(height: int, width: int) -> None:
    padded = resize_with_pad(np.full((height, width, 3), 255, np.uint8), 32)
    assert padded.shape == (32, 32, 3)
    lit = padded[..., 0] == 255
    seen = (lit.any(1).sum(), lit.any(0).sum())
    assert max(seen) == 32
    assert abs(seen[0] * width - seen[1] * height) <= max(height, width)
    assert lit.sum() == seen[0] * seen[1]
