"""Building blocks of the U-Net."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions; the condition scales and shifts the second's normalised input (FiLM)."""

    def __init__(self, channels_in: int, channels: int, condition_dim: int) -> None:
        super().__init__()
        self.norm_in = nn.GroupNorm(8, channels_in)
        self.conv_in = nn.Conv2d(channels_in, channels, 3, padding=1)
        self.norm_out = nn.GroupNorm(8, channels)
        self.conv_out = nn.Conv2d(channels, channels, 3, padding=1)
        self.film = nn.Linear(condition_dim, 2 * channels)
        self.skip = nn.Conv2d(channels_in, channels, 1) if channels_in != channels else nn.Identity()
        nn.init.zeros_(self.conv_out.weight)
        if self.conv_out.bias is not None:
            nn.init.zeros_(self.conv_out.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(B, channels, H, W) of x (B, channels_in, H, W) and condition (B, condition_dim)."""
        h = self.conv_in(F.silu(self.norm_in(x)))
        scale, shift = self.film(condition)[:, :, None, None].chunk(2, 1)
        h = self.conv_out(F.silu(self.norm_out(h) * (1 + scale) + shift))
        return self.skip(x) + h


class UNet(nn.Module):
    """Three scales: `channels` at full grid, twice that at half and quarter.

    Returns the features at full grid (B, channels, G, G) and at half grid (B, 2 * channels, G/2, G/2).
    """

    def __init__(self, channels_in: int, channels: int, condition_dim: int, middle_blocks: int = 2) -> None:
        super().__init__()
        wide = 2 * channels
        self.stem = nn.Conv2d(channels_in, channels, 1)
        self.down_1 = ResidualBlock(channels, channels, condition_dim)
        self.shrink_1 = nn.Conv2d(channels, wide, 3, 2, 1)
        self.down_2 = ResidualBlock(wide, wide, condition_dim)
        self.shrink_2 = nn.Conv2d(wide, wide, 3, 2, 1)
        self.middle = nn.ModuleList([ResidualBlock(wide, wide, condition_dim) for _ in range(middle_blocks)])
        self.grow_2 = nn.Conv2d(wide, wide, 1)
        self.up_2 = ResidualBlock(2 * wide, wide, condition_dim)
        self.grow_1 = nn.Conv2d(wide, channels, 1)
        self.up_1 = ResidualBlock(2 * channels, channels, condition_dim)
        self.norm = nn.GroupNorm(8, channels)

    def forward(self, x: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """See the class. x (B, channels_in, G, G), condition (B, condition_dim)."""
        full = self.down_1(self.stem(x), condition)
        half = self.down_2(self.shrink_1(full), condition)
        h = self.shrink_2(half)
        for block in self.middle:
            h = block(h, condition)
        h = self.up_2(_join(self.grow_2(_double(h)), half), condition)
        top = self.up_1(_join(self.grow_1(_double(h)), full), condition)
        return F.silu(self.norm(top)), h


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def _join(a: Tensor, b: Tensor) -> Tensor:
    return torch.cat([a, b], 1)
