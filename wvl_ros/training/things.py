"""Where the things on the table were at every step of an episode, where it says so.

A simulator knows; a real robot's episodes say it where somebody tracked the things, else nothing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from wvl_ros.world_model.things import MOST, Things, turn_between

POSE = 5  # numbers of each
COLUMNS = MOST * POSE
JUMP = 0.1  # m in a control step: what moved further was put there, or fell off the table


def pack(objects: NDArray[np.float64] | None, steps: int) -> NDArray[np.float32]:
    """Rows (steps, COLUMNS) of poses (steps, n, 5) as `TabletopWorld.object_poses` gives them, or of None."""
    rows = np.full((steps, MOST, POSE), np.nan, np.float32)
    if objects is not None and objects.size:
        rows[:, : objects.shape[1]] = objects[:, :MOST]
    return rows.reshape(steps, COLUMNS)


def mirrored(packed: Tensor) -> Tensor:
    """The same rows (B, COLUMNS) in a mirror between left and right."""
    return packed * packed.new_tensor([1.0, -1.0, 1.0, -1.0, 1.0]).repeat(MOST)


def things_at(before: Tensor, now: Tensor) -> Things:
    """The things of rows (B, COLUMNS) at a control step and at the one before it; none where nothing is known."""
    last, poses = (rows.unflatten(1, (MOST, POSE)) for rows in (before, now))
    there = ~poses[..., 2].isnan()
    last, poses = last.nan_to_num(), poses.nan_to_num()
    motion = poses[..., :3] - last[..., :3]
    motion = motion * (motion.norm(dim=2, keepdim=True) < JUMP)
    spin = turn_between(last[..., 3], poses[..., 3])
    return Things(poses[..., :3], poses[..., 3], poses[..., 4], motion, spin, there.float())
