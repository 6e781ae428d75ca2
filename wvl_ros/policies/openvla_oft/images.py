"""Camera images as OpenVLA-OFT sees them: squeezed to a square, its middle, and back to full size.

As `experiments/robot/openvla_utils.py` of moojink/openvla-oft does it with TensorFlow, but for two things: the image is
not compressed as JPEG and unpacked again before, and Pillow rounds between the two passes of the same Lanczos filter.
Bicubic interpolation, which `preprocessor_config.json` names, would find the image at its size already.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from wvl_ros.errors import ObservationError

_CROP = 0.9  # of the area


def prepare(image: np.ndarray, size: int, center_crop: bool, camera: str) -> Tensor:
    """An image uint8 (H, W, 3) as uint8 (3, size, size).

    Raises:
        ObservationError: another type or shape.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        shape = "x".join(str(n) for n in image.shape)
        raise ObservationError(f"The image of '{camera}' should be uint8 HxWx3 (RGB), but is {image.dtype} {shape}.")
    if image.shape[:2] != (size, size):
        image = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.LANCZOS))
    pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    return middle(pixels) if center_crop else pixels


def middle(pixels: Tensor) -> Tensor:
    """The middle 90 % of a square uint8 (3, S, S), stretched to its size; as `tf.image.crop_and_resize`."""
    line = torch.linspace(-1, 1, pixels.shape[-1]) * _CROP**0.5
    rows, columns = torch.meshgrid(line, line, indexing="ij")
    grid = torch.stack([columns, rows], -1)[None]
    stretched = F.grid_sample(pixels[None].float(), grid, mode="bilinear", align_corners=True)[0]
    return (stretched * (255.5 / 255)).clamp(0, 255).to(torch.uint8)  # TensorFlow's way from 0..1 to 0..255
