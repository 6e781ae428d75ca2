"""Quaternions (x, y, z, w) as ROS writes them, from and to DROID's extrinsic xyz Euler angles."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wvl_ros.worlds.droid import matrix_to_euler


def euler_to_quaternion(euler: ArrayLike) -> NDArray[np.float64]:
    """Quaternion (4,) of extrinsic xyz Euler angles (3,) in rad."""
    (cr, cp, cy), (sr, sp, sy) = np.cos(np.asarray(euler, float) / 2), np.sin(np.asarray(euler, float) / 2)
    return np.array(
        [
            sr * cp * cy - cr * sp * sy,
            cr * sp * cy + sr * cp * sy,
            cr * cp * sy - sr * sp * cy,
            cr * cp * cy + sr * sp * sy,
        ]
    )


def quaternion_to_euler(quaternion: ArrayLike) -> NDArray[np.float64]:
    """Extrinsic xyz Euler angles (3,) in rad of a quaternion (4,) of any length but 0."""
    q = np.asarray(quaternion, float)
    x, y, z, w = q / np.linalg.norm(q)
    matrix = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return matrix_to_euler(matrix)
