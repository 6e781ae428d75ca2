"""Three views in one picture: their latents stacked on the height, as Ctrl-World does."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from wvl_ros.world_model.patches import VIEWS as STACKED_VIEWS

__all__ = ["STACKED_VIEWS", "stack", "to_pixels", "to_uint8", "unstack"]


def stack(latents: Tensor) -> Tensor:
    """(..., 3, c, h, w) -> (..., c, 3 h, w), in the order exterior 1, exterior 2, wrist from the top."""
    return latents.transpose(-4, -3).flatten(-3, -2)


def unstack(latents: Tensor) -> Tensor:
    """The inverse of `stack`."""
    return latents.unflatten(-2, (STACKED_VIEWS, -1)).transpose(-4, -3)


def to_pixels(views: Tensor, codec: Any) -> Tensor:
    """Views uint8 (..., H, W, 3) as (..., 3, H, W) in -1..1, where and as `codec` computes."""
    pixels = views.to(codec.device).movedim(-1, -3).to(codec.dtype)
    return pixels / 127.5 - 1


def to_uint8(pixels: Tensor) -> Tensor:
    """The inverse of `to_pixels`, rounded and limited."""
    return ((pixels.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).movedim(-3, -1)
