"""Pictures in messages: every encoding read, every contradiction refused."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wvl_ros.errors import ObservationError
from wvl_ros.sans.bags.images import ENCODINGS, image_array


def message(image: np.ndarray, encoding: str, padding: int = 0) -> SimpleNamespace:
    """A sensor_msgs/Image of an RGB picture, its rows `padding` bytes longer than needed."""
    channels, order = ENCODINGS[encoding]
    height, width = image.shape[:2]
    pixels = np.full((height, width, channels), 77, np.uint8)
    for colour, place in enumerate(order):
        pixels[:, :, place] = image[:, :, colour]
    rows = np.pad(pixels.reshape(height, -1), ((0, 0), (0, padding)), constant_values=9)
    return SimpleNamespace(
        height=height, width=width, encoding=encoding, step=rows.shape[1], is_bigendian=0, data=rows.tobytes()
    )


@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    padding=st.integers(0, 5),
    seed=st.integers(0, 99),
    encoding=st.sampled_from(sorted(set(ENCODINGS) - {"mono8"})),
)
def test_every_encoding_gives_the_same_picture(height, width, padding, seed, encoding):
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    np.testing.assert_array_equal(image_array(message(image, encoding, padding)), image)


def test_grey_is_the_same_in_all_channels():
    grey = np.repeat(np.arange(6, dtype=np.uint8).reshape(2, 3, 1), 3, axis=2)
    np.testing.assert_array_equal(image_array(message(grey, "mono8")), grey)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"encoding": "16UC1"}, "encoding '16UC1' cannot be read; publish one of: rgb8"),
        ({"step": 5}, "needs a step of 9 bytes or more, not 5"),
        ({"data": b"\0" * 17}, "has 18 bytes, not 17"),
        ({"height": 0}, "nothing to see"),
    ],
)
def test_contradictions_are_refused(change, sentence):
    picture = message(np.zeros((2, 3, 3), np.uint8), "rgb8")
    with pytest.raises(ObservationError, match=sentence):
        image_array(SimpleNamespace(**(vars(picture) | change)))
