"""Building blocks of the U-Net: residual blocks, attention across the views, and the U-Net itself."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions; the condition scales and shifts the second's normalised input (FiLM)."""

    def __init__(self, channels: int, condition_dim: int) -> None:
        super().__init__()
        self.norm_in = nn.GroupNorm(8, channels)
        self.conv_in = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm_out = nn.GroupNorm(8, channels)
        self.conv_out = nn.Conv2d(channels, channels, 3, padding=1)
        self.film = nn.Linear(condition_dim, 2 * channels)
        zero(self.conv_out)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(N, channels, H, W) of x (N, channels, H, W) and condition (N, condition_dim)."""
        h = self.conv_in(F.silu(self.norm_in(x)))
        scale, shift = self.film(condition)[:, :, None, None].chunk(2, 1)
        return x + self.conv_out(F.silu(self.norm_out(h) * (1 + scale) + shift))


class ViewAttention(nn.Module):
    """Attention over all places of all views of one moment, so that the views agree on what they show.

    Args:
        channels: width. views: views of one moment; they follow one another in the batch. size: places along a side.
        heads: of the attention.
    """

    def __init__(self, channels: int, views: int, size: int, heads: int = 4) -> None:
        super().__init__()
        self.views, self.heads = views, heads
        self.norm = nn.GroupNorm(8, channels)
        self.place = nn.Parameter(0.02 * torch.randn(1, views * size * size, channels))
        self.to_qkv = nn.Linear(channels, 3 * channels)
        self.to_out = nn.Linear(channels, channels)
        zero(self.to_out)

    def forward(self, x: Tensor) -> Tensor:
        """(views * B, channels, size, size) of the same."""
        n, channels, height, width = x.shape
        tokens = self.norm(x).permute(0, 2, 3, 1).reshape(n // self.views, -1, channels)
        qkv = self.to_qkv(tokens + self.place.to(tokens.dtype))
        q, k, v = qkv.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        # Few places: plain products are faster on a CPU than its fused attention.
        weights = (q @ k.transpose(2, 3) * q.shape[-1] ** -0.5).softmax(3).to(v.dtype)
        seen = (weights @ v).transpose(1, 2).flatten(2)
        return x + self.to_out(seen).reshape(n, height, width, channels).permute(0, 3, 1, 2)


class UNet(nn.Module):
    """Three scales: `channels` at full grid, twice that at half and quarter; the views see each other at the lowest.

    Returns the features at full grid (N, channels, G, G) and at half grid (N, 2 * channels, G/2, G/2).
    """

    def __init__(self, channels_in: int, channels: int, condition_dim: int, views: int, grid: int) -> None:
        super().__init__()
        wide = 2 * channels
        self.stem = nn.Conv2d(channels_in, channels, 1)
        self.down_1 = ResidualBlock(channels, condition_dim)
        self.shrink_1 = nn.Conv2d(channels, wide, 3, 2, 1)
        self.down_2 = ResidualBlock(wide, condition_dim)
        self.shrink_2 = nn.Conv2d(wide, wide, 3, 2, 1)
        self.middle_1 = ResidualBlock(wide, condition_dim)
        self.attention_1 = ViewAttention(wide, views, grid // 4)
        self.middle_2 = ResidualBlock(wide, condition_dim)
        self.attention_2 = ViewAttention(wide, views, grid // 4)
        self.grow_2 = nn.Conv2d(wide, wide, 1)
        self.up_2 = ResidualBlock(wide, condition_dim)
        self.grow_1 = nn.Conv2d(wide, channels, 1)
        self.up_1 = ResidualBlock(channels, condition_dim)
        self.norm = nn.GroupNorm(8, channels)

    def forward(self, x: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """See the class. x (N, channels_in, G, G), condition (N, condition_dim)."""
        full = self.down_1(self.stem(x), condition)
        half = self.down_2(self.shrink_1(full), condition)
        low = self.attention_1(self.middle_1(self.shrink_2(half), condition))
        low = self.attention_2(self.middle_2(low, condition))
        half = self.up_2(half + double(self.grow_2(low)), condition)
        full = self.up_1(full + double(self.grow_1(half)), condition)
        return F.silu(self.norm(full)), half


def double(x: Tensor) -> Tensor:
    """Twice as high and wide, each value repeated."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def zero(layer: nn.Conv2d | nn.Linear) -> None:
    """Lets a layer begin with nothing."""
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
