"""Finds the things on the table: the three views are looked up on a map of it, and each of its places tells whether the
middle of a thing is there, where exactly, and how it lies (compare CenterNet, Zhou et al. 2019).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wvl_ros.world_model.geometry import CameraGeometry
from wvl_ros.world_model.kinematics import Kinematics
from wvl_ros.world_model.patches import VIEWS
from wvl_ros.world_model.things import MOST, Things

CELL = 0.006  # m between the places that are looked up
STRIDE = 2  # of them, a side, to a place that tells
ROWS, COLUMNS = 60, 88  # places looked up along x and y
CENTER = (0.51, 0.0)  # m
HEIGHT, HEIGHT_UNIT = 0.02, 0.03  # m
HALF, HALF_UNIT = 0.02, 0.01  # m
_LOW, _HIGH, _MIDDLE = 0.015, 0.045, 0.03  # m above the table: sides and top of a usual thing; for the wrist, between
_HAND = 0.03  # m, width of the hand's mark
_IN = 3 * (2 * (VIEWS - 1) + 1) + 1 + 2 + 2  # colours; what the wrist sees; the hand; x and y
_WIDE, _MID, _DEEP = 32, 48, 64
_LIKE = 6
_RARE = -4.0  # logit of a thing that a fresh network starts from
_LEAST = 0.5  # probability of one that counts
_SAME = 0.012  # m: places that mean the same thing mean it so near


class Told(NamedTuple):
    """Of a map's places: `thing` (B, H, W) logits of a thing's middle; `like` (B, H, W, 6) of the nearest thing: where
    its middle is, from the place's in units of the places' distance, its height and half of its width, each in units
    from a usual one, and cosine and sine of four times its yaw.
    """

    thing: Tensor
    like: Tensor


class _Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, channels)
        self.a, self.b = nn.Conv2d(channels, channels, 3, padding=1), nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.b.weight)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.b(F.silu(self.a(F.silu(self.norm(x)))))
        return result


class ThingFinder(nn.Module):
    """Tells a `Told` of frames.

    Args:
        geometry: of the cameras; not a part of this module.
    """

    spots: Tensor
    places: Tensor

    def __init__(self, geometry: CameraGeometry) -> None:
        super().__init__()
        self._geometry = [geometry]
        x, y = (
            (torch.arange(n) - (n - 1) / 2) * CELL + middle for n, middle in zip((ROWS, COLUMNS), CENTER, strict=True)
        )
        spots = torch.stack(torch.meshgrid(x, y, indexing="ij"), -1)
        self.register_buffer("spots", spots.reshape(-1, 2), persistent=False)
        places = F.avg_pool2d(spots.permute(2, 0, 1)[None], STRIDE)[0].permute(1, 2, 0)
        self.register_buffer("places", places, persistent=False)  # (H, W, 2) m
        self.one = nn.Conv2d(_IN, _WIDE, 3, padding=1)
        self.two, self.two_block = nn.Conv2d(_WIDE, _MID, 3, STRIDE, 1), _Block(_MID)
        self.three = nn.Conv2d(_MID, _DEEP, 3, 2, 1)
        self.three_blocks = nn.Sequential(_Block(_DEEP), _Block(_DEEP))
        self.up, self.out_block = nn.Conv2d(_DEEP, _MID, 1), _Block(_MID)
        last = nn.Conv2d(_MID, 1 + _LIKE, 1)
        self.out = nn.Sequential(nn.GroupNorm(8, _MID), nn.SiLU(), last)
        assert last.bias is not None
        nn.init.constant_(last.bias[:1], _RARE)

    def look(self, images: Tensor, k: Kinematics) -> Tensor:
        """The map (B, _IN, ROWS, COLUMNS) of images (B, V, 3, S, S) in -1..1, taken at `k`."""
        geometry = self._geometry[0]
        spots = self.spots.expand(len(images), -1, -1)
        parts = []
        for view in range(VIEWS):
            for height in (_LOW, _HIGH) if view < 2 else (_MIDDLE,):
                place, inside = geometry.places_of(view, F.pad(spots, (0, 1), value=height), k)
                found = F.grid_sample(images[:, view], place[:, None], align_corners=False, padding_mode="border")
                parts.append(found[:, :, 0])
            if view == 2:
                parts.append(inside[:, None].float())
        tip = k.state()[:, :3]
        hand = torch.exp(-0.5 * ((spots - tip[:, None, :2]) / _HAND).square().sum(2))
        parts += [hand[:, None], (hand * torch.tanh(tip[:, 2:] / 0.1))[:, None]]
        parts.append(((spots - spots.new_tensor(CENTER)) / 0.15).transpose(1, 2))
        return torch.cat(parts, 1).unflatten(2, (ROWS, COLUMNS))

    def forward(self, seen: Tensor) -> Told:
        """Of a map as `look` gives it."""
        x = seen.contiguous(memory_format=torch.channels_last)
        x = self.two_block(self.two(F.silu(self.one(x))))
        deep = self.three_blocks(self.three(F.silu(x)))
        x = x + F.interpolate(self.up(deep), size=x.shape[2:], mode="nearest")
        out = self.out(self.out_block(x)).float()
        return Told(out[:, 0], out[:, 1:].permute(0, 2, 3, 1))

    @torch.no_grad()
    def find(self, images: Tensor, k: Kinematics) -> Things:
        """The things that images (B, V, 3, S, S) show, taken at `k`; they are thought to be at rest."""
        told = self(self.look(images, k))
        chance = told.thing.sigmoid()[:, None]
        peaks = chance * (F.max_pool2d(chance, 3, 1, 1) == chance)
        score, index = peaks.flatten(1).topk(MOST)
        middle = self.places + told.like[..., :2] * (CELL * STRIDE)
        each = torch.cat([middle, told.like[..., 2:]], 3).permute(0, 3, 1, 2)
        # What the places around say who mean the same thing is averaged: half of the error is gone.
        around = F.unfold(each, 3, padding=1).unflatten(1, (_LIKE, 9))
        same = (around[:, :2] - around[:, :2, 4:5]).norm(dim=1) < _SAME
        weight = same * (F.unfold(chance, 3, padding=1) + 0.02)
        mean = (around * weight[:, None]).sum(2) / weight.sum(1, keepdim=True)
        x, y, height, half, cosine, sine = mean.gather(2, index[:, None].expand(-1, _LIKE, -1)).unbind(1)
        place = torch.stack([x, y, HEIGHT + HEIGHT_UNIT * height], 2)
        return Things.at_rest(place, torch.atan2(sine, cosine) / 4, HALF + HALF_UNIT * half, score > _LEAST)
