"""The pictures of sensor_msgs/Image and CompressedImage as numpy arrays, whoever made the message."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wvl_ros.errors import ObservationError

# encoding -> channels in the message, and which of them are red, green and blue
ENCODINGS = {
    "rgb8": (3, [0, 1, 2]),
    "bgr8": (3, [2, 1, 0]),
    "rgba8": (4, [0, 1, 2]),
    "bgra8": (4, [2, 1, 0]),
    "mono8": (1, [0, 0, 0]),
}
# encoding -> where in four bytes (two pixels) the two luminances and the two colour differences lie
YUV_ENCODINGS = {
    **dict.fromkeys(("yuv422_yuy2", "yuyv"), ([0, 2], 1, 3)),
    **dict.fromkeys(("yuv422", "uyvy"), ([1, 3], 0, 2)),
}
MAX_PIXELS = 1 << 26


def image_array(message: Any) -> NDArray[np.uint8]:
    """The picture of a sensor_msgs/Image as uint8 (H, W, 3) RGB; rgb8 is not copied.

    Rows are `step` bytes apart, whatever lies between them. `is_bigendian` has no meaning for the 8-bit encodings
    known here.

    Raises:
        ObservationError: an unknown encoding, no pixels, or a `step` or size of data that does not fit.
    """
    height, width, step = int(message.height), int(message.width), int(message.step)
    if message.encoding in YUV_ENCODINGS:
        channels, order = 2, [0, 1]
    elif message.encoding in ENCODINGS:
        channels, order = ENCODINGS[message.encoding]
    else:
        known = ", ".join([*ENCODINGS, *YUV_ENCODINGS])
        raise ObservationError(f"Images of encoding '{message.encoding}' cannot be read; publish one of: {known}.")
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
    if message.encoding in YUV_ENCODINGS:
        return _from_yuv(pixels, *YUV_ENCODINGS[message.encoding])
    return pixels if message.encoding == "rgb8" else pixels[:, :, order]


def compressed_image_array(message: Any) -> NDArray[np.uint8]:
    """The picture of a sensor_msgs/CompressedImage (JPEG or PNG) as uint8 (H, W, 3) RGB.

    Raises:
        ObservationError: another format, damaged, or absurdly large.
    """
    try:
        with Image.open(io.BytesIO(bytes(message.data)), formats=("JPEG", "PNG")) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise ObservationError(f"A compressed image claims {picture.width}x{picture.height} pixels.")
            if picture.mode not in ("RGB", "L", "RGBA", "P", "1"):
                raise ObservationError(f"A compressed image is of mode '{picture.mode}', not a colour picture.")
            return np.asarray(picture.convert("RGB"))
    except (OSError, ValueError, SyntaxError, ArithmeticError, Image.DecompressionBombError) as error:
        raise ObservationError(f"A compressed image ('{message.format}') cannot be read: {error}.") from error


def _from_yuv(pixels: NDArray[np.uint8], luma: list[int], blue: int, red: int) -> NDArray[np.uint8]:
    """RGB of packed 4:2:2 (H, W, 2), BT.601 with the limited range, as V4L2's YUYV."""
    height, width, _ = pixels.shape
    if width % 2:
        raise ObservationError(f"A YUV 4:2:2 image has an even width, not {width}.")
    quads = pixels.reshape(height, width // 2, 4).astype(np.float32)
    y = (quads[..., luma].reshape(height, width) - 16.0) * (255 / 219)
    u = np.repeat(quads[..., blue] - 128.0, 2, axis=1) * (255 / 224)
    v = np.repeat(quads[..., red] - 128.0, 2, axis=1) * (255 / 224)
    rgb = np.stack([y + 1.402 * v, y - 0.344136 * u - 0.714136 * v, y + 1.772 * u], axis=2)
    return np.clip(np.rint(rgb), 0, 255).astype(np.uint8)
