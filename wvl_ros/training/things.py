"""Where the things on the table were at every step of an episode, where it says so.

A simulator knows; a real robot's episodes do not, and are learned from by their pictures alone.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MOST = 8  # things of an episode; more are left out
_POSE = 5  # numbers of each
COLUMNS = MOST * _POSE


class Things(NamedTuple):
    """Of B moments: `place` (B, 8, 2) in m of the base, `height` (B, 8) of the middle above the table in m, `yaw`
    (B, 8) in rad, `half` (B, 8) of the width in m. NaN where there is none or nothing is known.
    """

    place: Tensor
    height: Tensor
    yaw: Tensor
    half: Tensor

    @classmethod
    def unpack(cls, packed: Tensor) -> Things:
        """Of rows (B, COLUMNS)."""
        poses = packed.unflatten(1, (MOST, _POSE))
        return cls(poses[..., :2], poses[..., 2], poses[..., 3], poses[..., 4])


def pack(objects: NDArray[np.float64] | None, steps: int) -> NDArray[np.float32]:
    """Rows (steps, COLUMNS) of poses (steps, n, 5) as `TabletopWorld.object_poses` gives them, or of None."""
    rows = np.full((steps, MOST, _POSE), np.nan, np.float32)
    if objects is not None and objects.size:
        rows[:, : objects.shape[1]] = objects[:, :MOST]
    return rows.reshape(steps, COLUMNS)


def mirrored(packed: Tensor) -> Tensor:
    """The same rows (B, COLUMNS) in a mirror between left and right."""
    return packed * packed.new_tensor([1.0, -1.0, 1.0, -1.0, 1.0]).repeat(MOST)


def turn_between(before: Tensor, after: Tensor) -> Tensor:
    """By how many rad something square has turned, at most an eighth of a circle; yaws of one shape."""
    quarter = torch.pi / 2
    return (after - before + quarter / 2) % quarter - quarter / 2
