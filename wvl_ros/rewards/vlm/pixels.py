"""Frames as the vision tower of a Qwen-VL model takes them, without torchvision, which its video processors need.

The model's own image processor on PIL gives the same numbers for a still picture (tested).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor


@dataclass(frozen=True)
class Patching:
    """How a model cuts a video into patches.

    Attributes:
        patch: pixels along a side of a patch. merge: patches along a side of what becomes one token.
        together: frames in a patch. mean, std: of the colours 0..1, taken off and divided by.
    """

    patch: int
    merge: int
    together: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def size(self, height: int, width: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
        """Height and width to scale a frame to: whole tokens, pixels within bounds, about its shape."""
        unit = self.patch * self.merge
        rows, columns = (round(side / unit) for side in (height, width))
        area = rows * columns * unit**2
        if area > max_pixels:
            shrink = math.sqrt(height * width / max_pixels)
            rows, columns = (max(1, math.floor(side / shrink / unit)) for side in (height, width))
        elif area < min_pixels:
            grow = math.sqrt(min_pixels / (height * width))
            rows, columns = (math.ceil(side * grow / unit) for side in (height, width))
        return rows * unit, columns * unit

    def cut(self, frames: NDArray[np.uint8], min_pixels: int, max_pixels: int) -> tuple[Tensor, tuple[int, int, int]]:
        """Patches of a video.

        Args:
            frames: uint8 (T, H, W, 3). min_pixels, max_pixels: of a frame, see `size`.

        Returns:
            float32 (t h w, 3 together patch²) and how many patches there are in time, height and width: (t, h, w). The
            last frame is repeated where `together` does not divide T.
        """
        height, width = self.size(frames.shape[1], frames.shape[2], min_pixels, max_pixels)
        size = width, height
        scaled = [np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC)) for frame in frames]
        scaled += scaled[-1:] * (-len(scaled) % self.together)
        pixels = torch.from_numpy(np.stack(scaled)).permute(0, 3, 1, 2).float() / 255
        pixels = (pixels - torch.tensor(self.mean)[:, None, None]) / torch.tensor(self.std)[:, None, None]
        t, h, w = len(scaled) // self.together, height // self.patch, width // self.patch
        m, p = self.merge, self.patch
        blocks = pixels.reshape(t, self.together, 3, h // m, m, p, w // m, m, p)
        # The patches of a token lie together; within a patch: colour, time, row, column.
        return blocks.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(t * h * w, -1), (t, h, w)
