"""Pictures as sensor_msgs/Image and back, without cv_bridge (which reads these messages where a stock ROS has it)."""

from __future__ import annotations

import array

import numpy as np
from builtin_interfaces.msg import Time
from numpy.typing import NDArray
from sensor_msgs.msg import Image

from wvl_ros.errors import ObservationError
from wvl_ros.sans.bags.images import image_array

__all__ = ["image_array", "image_message", "refill"]


def image_message(image: NDArray[np.uint8], stamp: Time, frame_id: str) -> Image:
    """An rgb8 message of a picture.

    Args:
        image: uint8 (H, W, 3) RGB.

    Raises:
        ObservationError: another type or shape.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ObservationError(f"A picture should be uint8 (H, W, 3), but is {image.dtype} {image.shape}.")
    message = Image()
    message.header.stamp, message.header.frame_id = stamp, frame_id
    message.height, message.width = image.shape[:2]
    message.encoding, message.step, message.is_bigendian = "rgb8", 3 * image.shape[1], 0
    # An array.array is the one type that every distribution's setter takes without a look at each byte.
    data = array.array("B")
    data.frombytes(np.ascontiguousarray(image).reshape(-1).data)
    message.data = data
    return message


def refill(message: Image, image: NDArray[np.uint8], stamp: Time) -> bool:
    """Puts a new picture into a message of `image_message` that has been published, without allocating a new one.

    Returns:
        Whether it fits; if not, the message is left as it was.
    """
    fits = image.dtype == np.uint8 and image.shape == (message.height, message.width, 3)
    if fits:
        message.header.stamp = stamp
        np.frombuffer(message.data, np.uint8).reshape(image.shape)[:] = image
    return fits
