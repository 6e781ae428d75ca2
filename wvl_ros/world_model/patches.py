"""Images as patches: what the network sees of three camera images.

A *frame* is the three views of one moment at 64x64, pixel-unshuffled by 4: channels (view, rgb, row in patch, column in
patch) of a 16x16 grid. On disk and in memory frames are uint8 (16, 16, 144); in the network float (B, 144, 16, 16) in
-1..1.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

VIEWS = 3


def resize(images: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Images (N, H, W, 3) uint8 at another size: area-averaged when they shrink, bilinear when they grow."""
    if images.shape[1:3] == (height, width):
        return images
    pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float()
    shrinks = images.shape[1] >= height and images.shape[2] >= width
    if shrinks:
        pixels = F.interpolate(pixels, (height, width), mode="area")
    else:
        pixels = F.interpolate(pixels, (height, width), mode="bilinear", align_corners=False, antialias=True)
    return pixels.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def to_patches(views: NDArray[np.uint8], patch: int) -> NDArray[np.uint8]:
    """Views (N, 3, S, S, 3) uint8 as frames (N, S/patch, S/patch, 9 * patch**2) uint8."""
    n, v, size, _, c = views.shape
    grid = size // patch
    split = views.reshape(n, v, grid, patch, grid, patch, c).transpose(0, 2, 4, 1, 6, 3, 5)
    return np.ascontiguousarray(split).reshape(n, grid, grid, v * c * patch * patch)


def from_patches(frames: NDArray[np.uint8], patch: int) -> NDArray[np.uint8]:
    """Frames (N, G, G, 9 * patch**2) uint8 back as views (N, 3, S, S, 3) uint8; the inverse of `to_patches`."""
    n, grid = frames.shape[:2]
    split = frames.reshape(n, grid, grid, VIEWS, 3, patch, patch).transpose(0, 3, 1, 5, 2, 6, 4)
    return np.ascontiguousarray(split).reshape(n, VIEWS, grid * patch, grid * patch, 3)


def to_tensor(frames: NDArray[np.uint8] | torch.Tensor) -> torch.Tensor:
    """Frames (N, G, G, C) uint8 as float32 (N, C, G, G) in -1..1, channels last in memory."""
    if isinstance(frames, np.ndarray):
        # A memory map is read-only, and torch warns of tensors that are.
        frames = torch.from_numpy(np.array(frames) if not frames.flags.writeable else np.ascontiguousarray(frames))
    return (frames.float() / 127.5 - 1.0).permute(0, 3, 1, 2)


def to_uint8(frames: torch.Tensor) -> NDArray[np.uint8]:
    """Float frames (N, C, G, G) in -1..1 as uint8 (N, G, G, C)."""
    pixels = ((frames.float() + 1.0) * 127.5).round_().clamp_(0, 255).to(torch.uint8)
    return np.asarray(pixels.permute(0, 2, 3, 1).contiguous().numpy())
