"""Pictures into messages: what is published is what was seen, also when a message is used again."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("rclpy")

from builtin_interfaces.msg import Time

from wvl_ros.errors import ObservationError
from wvl_ros.nodes.images import image_array, image_message, refill


def test_a_message_used_again_holds_the_new_picture_or_stays_as_it_was() -> None:
    first, second = np.random.default_rng(0).integers(0, 256, (2, 6, 8, 3), np.uint8)
    message = image_message(first, Time(sec=1), "camera")
    assert np.array_equal(image_array(message), first)
    assert refill(message, second[:, ::-1], Time(sec=2))  # not contiguous
    assert np.array_equal(image_array(message), second[:, ::-1])
    assert message.header.stamp == Time(sec=2)
    for other in (first[:4], first.astype(np.float32), first[..., :1]):
        assert not refill(message, other, Time(sec=3))
    assert np.array_equal(image_array(message), second[:, ::-1])
    assert message.header.stamp == Time(sec=2)


def test_a_picture_of_another_kind_is_refused() -> None:
    with pytest.raises(ObservationError, match="uint8"):
        image_message(np.zeros((6, 8, 3), np.float32), Time(), "camera")
