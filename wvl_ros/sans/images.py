"""The pictures of sensor_msgs/Image as numpy arrays, whoever made the message (rclpy, rosbags, a test)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from wvl_ros.errors import ObservationError

# encoding -> channels in the message, and which of them are red, green and blue
ENCODINGS = {
    "rgb8": (3, [0, 1, 2]),
    "bgr8": (3, [2, 1, 0]),
    "rgba8": (4, [0, 1, 2]),
    "bgra8": (4, [2, 1, 0]),
    "mono8": (1, [0, 0, 0]),
}


def image_array(message: Any) -> NDArray[np.uint8]:
    """The picture of a sensor_msgs/Image as uint8 (H, W, 3) RGB; rgb8 is not copied.

    Rows are `step` bytes apart, whatever lies between them. `is_bigendian` has no meaning for the 8-bit encodings
    known here.

    Raises:
        ObservationError: an unknown encoding, no pixels, or a `step` or size of data that does not fit.
    """
    height, width, step = int(message.height), int(message.width), int(message.step)
    if message.encoding not in ENCODINGS:
        known = ", ".join(ENCODINGS)
        raise ObservationError(f"Images of encoding '{message.encoding}' cannot be read; publish one of: {known}.")
    channels, order = ENCODINGS[message.encoding]
    if height < 1 or width < 1:
        raise ObservationError(f"An image of {width}x{height} pixels has nothing to see; check the camera's settings.")
    if step < width * channels:
        raise ObservationError(
            f"An image {width} pixels wide in {message.encoding} needs a step of {width * channels} bytes or more, "
            f"not {step}."
        )
    data = np.frombuffer(message.data, np.uint8)
    if len(data) != height * step:
        raise ObservationError(f"An image of {height} rows of {step} bytes has {height * step} bytes, not {len(data)}.")
    pixels = data.reshape(height, step)[:, : width * channels].reshape(height, width, channels)
    return pixels if message.encoding == "rgb8" else pixels[:, :, order]
