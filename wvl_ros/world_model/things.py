"""The things on the table: where they are, how they lie and how they move, as a rollout carries them along."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

MOST = 10  # things of a scene; more are left out
COLUMNS = 10 * MOST
SIDES = 0.015  # m: what is narrower (half of its width) has none, and no yaw: balls
_QUARTER = torch.pi / 2


class Things(NamedTuple):
    """Of B moments, up to 10 things each.

    Attributes:
        place: (B, 10, 3) of the middle, in m of the base. yaw: (B, 10) in rad. half: (B, 10) of the width, in m.
        motion, spin: (B, 10, 3) in m and (B, 10) in rad, of the last control step. there: (B, 10), 1 or 0.
    """

    place: Tensor
    yaw: Tensor
    half: Tensor
    motion: Tensor
    spin: Tensor
    there: Tensor

    @classmethod
    def at_rest(cls, place: Tensor, yaw: Tensor, half: Tensor, there: Tensor) -> Things:
        """Of things that do not move."""
        return cls(place, yaw, half, torch.zeros_like(place), torch.zeros_like(yaw), there.to(place.dtype))

    @classmethod
    def none(cls, batch: int, device: torch.device | None = None) -> Things:
        """Of scenes of which nothing is known."""
        return cls.unpack(torch.zeros(batch, COLUMNS, device=device))

    def pack(self) -> Tensor:
        """All of it as one tensor (B, COLUMNS)."""
        return torch.cat([part if part.dim() == 3 else part[..., None] for part in self], 2).flatten(1)

    @classmethod
    def unpack(cls, packed: Tensor) -> Things:
        """The inverse of `pack`."""
        place, yaw, half, motion, spin, there = packed.unflatten(1, (MOST, 10)).split([3, 1, 1, 3, 1, 1], 2)
        return cls(place, yaw[..., 0], half[..., 0], motion, spin[..., 0], there[..., 0])


def turn_between(before: Tensor, after: Tensor) -> Tensor:
    """By how many rad something square has turned, at most an eighth of a circle; yaws of one shape."""
    return (after - before + _QUARTER / 2) % _QUARTER - _QUARTER / 2
