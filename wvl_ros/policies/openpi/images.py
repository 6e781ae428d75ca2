"""Camera images in the size that openpi's policies want."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIZE = 224  # px, both sides


def resize_with_pad(image: NDArray[np.uint8], size: int = SIZE) -> NDArray[np.uint8]:
    """A uint8 (H, W, 3) image in the middle of a black (size, size, 3) one, as large as fits without distortion.

    Bilinear, rounded down, as `openpi_client/image_tools.py` does it: the policies were trained on such pictures.
    """
    height, width = image.shape[:2]
    if (height, width) == (size, size):
        return image
    ratio = max(height, width) / size
    inner = (max(1, int(height / ratio)), max(1, int(width / ratio)))
    small = Image.fromarray(image).resize((inner[1], inner[0]), Image.Resampling.BILINEAR)
    padded = np.zeros((size, size, 3), np.uint8)
    top, left = ((size - length) // 2 for length in inner)
    padded[top : top + inner[0], left : left + inner[1]] = np.asarray(small)
    return padded
