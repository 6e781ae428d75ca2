"""What the hand touches or comes closest to, and where that goes, where an episode says where its things are.

A simulator knows; a real robot's episodes do not, and are learned from by their pictures alone.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

TOUCHED = 8  # columns
_REACH = 0.12  # m from the fingertips that something can be touched in
_MOVES = 0.002  # m in a frame


class Touched(NamedTuple):
    """Of B frames: `before`, `after` (B, 3) x, y in m, yaw in rad of a thing at a frame and at the next one, then its
    `height` (B,) in m above the table and half of its width, `half` (B,) in m. NaN where nothing is known.
    """

    before: Tensor
    after: Tensor
    height: Tensor
    half: Tensor

    @classmethod
    def unpack(cls, packed: Tensor) -> Touched:
        """Of rows (B, TOUCHED)."""
        return cls(packed[:, :3], packed[:, 3:6], packed[:, 6], packed[:, 7])


def touched(objects: NDArray[np.float64] | None, tips: NDArray[np.float64], every: int) -> NDArray[np.float32]:
    """Packed `Touched` (N, TOUCHED) of all N steps for the frames `every` steps apart.

    Args:
        objects: (N, n, 5) of all steps as `TabletopWorld.object_poses` gives them, or None.
        tips: (N, 3) m, the middle between the fingertips.
    """
    rows = np.full((len(tips), TOUCHED), np.nan, np.float32)
    if objects is None or not objects.shape[1]:
        return rows
    now, then = objects[:-every], objects[every:]
    moved = np.linalg.norm(then[..., :3] - now[..., :3], axis=2)
    away = np.linalg.norm(then[..., :2] - tips[every:, None, :2], axis=2)
    # What moves most of all that is near, else what is nearest.
    pushed = np.where((away < _REACH) & (moved > _MOVES), moved, 0.0)
    which = np.where(pushed.any(1), pushed.argmax(1), away.argmin(1))
    step = np.arange(len(now))
    a, b = now[step, which], then[step, which]
    columns = (0, 1, 3)
    rows[: len(now)] = np.hstack([a[:, columns], b[:, columns], b[:, [2, 4]]])
    return rows


def mirrored(packed: Tensor) -> Tensor:
    """The same rows (B, TOUCHED) in a mirror between left and right."""
    return packed * packed.new_tensor([1.0, -1.0, -1.0, 1.0, -1.0, -1.0, 1.0, 1.0])


def turn_between(before: Tensor, after: Tensor) -> Tensor:
    """By how many rad something square has turned, at most an eighth of a circle; yaws (B,)."""
    quarter = torch.pi / 2
    return (after - before + quarter / 2) % quarter - quarter / 2
