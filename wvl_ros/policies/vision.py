"""From camera images to keypoints: area-averaged images and the spatial-softmax encoder."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wvl_ros.errors import ObservationError


def shrink(images: Sequence[np.ndarray], size: int, camera: str) -> Tensor:
    """B images of one camera, uint8 (H, W, 3), averaged over areas to uint8 (B, 3, size, size).

    Raises:
        ObservationError: another type or shape, or an image smaller than `size`.
    """
    for image in images:
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            shape = "x".join(str(n) for n in image.shape)
            raise ObservationError(
                f"The image of '{camera}' should be uint8 HxWx3 (RGB), but is {image.dtype} {shape}."
            )
        if min(image.shape[:2]) < size:
            height, width = image.shape[:2]
            raise ObservationError(
                f"The image of '{camera}' is {height}x{width}, but the policy needs at least {size}x{size} pixels."
            )
    alike = len({image.shape for image in images}) == 1
    stacks = [np.stack(images)] if alike else [image[None] for image in images]
    return torch.cat([_average(torch.from_numpy(stack).permute(0, 3, 1, 2), size) for stack in stacks])


def _average(pixels: Tensor, size: int) -> Tensor:
    if pixels.shape[2:] == (size, size):
        return pixels.contiguous()
    return F.adaptive_avg_pool2d(pixels.float(), size).round_().to(torch.uint8)


def jolted(images: Tensor, by: np.ndarray) -> Tensor:
    """Images uint8 (B, cameras, 3, S, S) moved by (B, 2) whole pixels, down and to the right; edges are repeated.

    As in DrQ (Kostrikov et al. 2020): what a network does must not hang on single pixels.
    """
    most, size = int(np.abs(by).max()), images.shape[-1]
    padded = (
        F.pad(images.flatten(1, 2).float(), (most,) * 4, mode="replicate")
        .to(torch.uint8)
        .view(*images.shape[:-2], size + 2 * most, size + 2 * most)
    )
    corners = most - by
    return torch.stack([part[..., y : y + size, x : x + size] for part, (y, x) in zip(padded, corners, strict=True)])


class KeypointEncoder(nn.Module):
    """Convolutions whose last maps are read as points: where each map is strongest, and how strong.

    Each map is standardised over space before the softmax (Finn et al. 2016, "Deep Spatial Autoencoders", with the
    standardisation of an instance norm), so that its peak is sharp from the first update on. The first two layers are
    scaled by the instruction, so that a map can look for the object that was named.
    """

    grid: Tensor
    places: Tensor

    def __init__(self, size: int, stride: int, channels: int, keypoints: int, layers: int, language_dim: int) -> None:
        super().__init__()
        self.stride = stride
        grid = size // stride
        line = torch.linspace(-1, 1, grid)
        rows, columns = torch.meshgrid(line, line, indexing="ij")
        self.register_buffer("grid", torch.stack([columns, rows])[None], persistent=False)
        self.register_buffer("places", torch.stack([columns.flatten(), rows.flatten()], 1), persistent=False)
        inputs = 3 * stride**2 + 2
        self.convolutions = nn.ModuleList(
            [nn.Conv2d(inputs if i == 0 else channels, channels, 3, padding=1) for i in range(layers)]
        )
        self.scales = nn.ModuleList([nn.Linear(language_dim, channels) for _ in range(min(2, layers))])
        self.maps = nn.Conv2d(channels, keypoints, 3, padding=1)
        self.log_sharpness = nn.Parameter(torch.full((keypoints, 1), math.log(2.0)))
        self.dim = 3 * keypoints

    def forward(self, images: Tensor, language: Tensor) -> Tensor:
        """Features (B, 3 x keypoints): x, y in -1..1 and strength, of images uint8 (B, 3, S, S)."""
        precision = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else self.maps.weight.dtype
        pixels = F.pixel_unshuffle(images, self.stride).to(precision) / 127.5 - 1
        x = torch.cat([pixels, self.grid.to(pixels.dtype).expand(len(pixels), -1, -1, -1)], 1)
        x = x.contiguous(memory_format=torch.channels_last)
        for i, convolution in enumerate(self.convolutions):
            x = F.silu(convolution(x))
            if i < len(self.scales):
                x = x * (1 + self.scales[i](language))[:, :, None, None]
        maps = self.maps(x).flatten(2).float()
        maps = maps - maps.mean(-1, keepdim=True)
        maps = maps / (maps.square().mean(-1, keepdim=True).sqrt() + 0.05)
        weights = (maps * self.log_sharpness.exp()).softmax(-1)
        strength = torch.tanh(0.1 * (weights * maps).sum(-1))
        return torch.cat([(weights @ self.places).flatten(1), strength], 1)
