"""FR3 kinematics in numpy: the flange pose of a joint vector, its Jacobian, and damped least squares back.

Denavit-Hartenberg parameters (Craig's convention) as published in Franka's robot documentation, the same for Panda
and FR3.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

JOINT_LOWER = np.array([-2.7437, -1.7837, -2.9007, -3.0421, -2.8065, 0.5445, -3.0159])
JOINT_UPPER = np.array([2.7437, 1.7837, 2.9007, -0.1518, 2.8065, 4.5169, 3.0159])

_A = (0.0, 0.0, 0.0, 0.0825, -0.0825, 0.0, 0.088)
_D = (0.333, 0.0, 0.316, 0.0, 0.384, 0.0, 0.0)
_ALPHA = (0.0, -np.pi / 2, np.pi / 2, np.pi / 2, -np.pi / 2, np.pi / 2, np.pi / 2)
_FLANGE = 0.107

_COS_ALPHA = np.cos(_ALPHA)
_SIN_ALPHA = np.sin(_ALPHA)
_EYE6 = np.eye(6)

# The seven link transforms without their joint angles, and the flange as an eighth.
_LINKS = np.zeros((8, 4, 4))
_LINKS[:, 3, 3] = 1.0
_LINKS[:7, 0, 3] = _A
_LINKS[:7, 1, 2] = -_SIN_ALPHA
_LINKS[:7, 2, 2] = _COS_ALPHA
_LINKS[:7, 1, 3] = -_SIN_ALPHA * _D
_LINKS[:7, 2, 3] = _COS_ALPHA * _D
_LINKS[7, :3, :3] = np.eye(3)
_LINKS[7, 2, 3] = _FLANGE


def _frames(joints: Array) -> Array:
    """The poses (8, 4, 4) of the seven joints and the flange in the base frame. Joint i turns about its own z axis."""
    cos_q, sin_q = np.cos(joints), np.sin(joints)
    frames = _LINKS.copy()
    links = frames[:7]
    links[:, 0, 0], links[:, 0, 1] = cos_q, -sin_q
    links[:, 1, 0], links[:, 1, 1] = sin_q * _COS_ALPHA, cos_q * _COS_ALPHA
    links[:, 2, 0], links[:, 2, 1] = sin_q * _SIN_ALPHA, cos_q * _SIN_ALPHA
    for i in range(1, 8):
        frames[i] = frames[i - 1] @ frames[i]
    return frames


def flange_pose(joints: Array) -> tuple[Array, Array]:
    """Flange (panda_link8) position (3,) in m and rotation (3, 3) of a joint vector (7,) in rad."""
    flange = _frames(np.asarray(joints, float))[7]
    return flange[:3, 3], flange[:3, :3]


def link_positions(joints: Array) -> Array:
    """Where elbow and wrist are, (2, 3) m in the base frame: the origins of joints 4 and 6."""
    return np.array(_frames(np.asarray(joints, float))[[3, 5], :3, 3])


def flange_jacobian(joints: Array) -> tuple[Array, Array, Array]:
    """Flange position (3,), rotation (3, 3) and geometric Jacobian (6, 7): linear rows in m/rad, then angular."""
    frames = _frames(np.asarray(joints, float))
    position = frames[7, :3, 3]
    x, y, z = axes = frames[:7, :3, 2].T
    ax, ay, az = (position - frames[:7, :3, 3]).T
    jacobian = np.empty((6, 7))
    jacobian[0] = y * az - z * ay
    jacobian[1] = z * ax - x * az
    jacobian[2] = x * ay - y * ax
    jacobian[3:] = axes
    return position, frames[7, :3, :3], jacobian


def rotation_error(current: Array, target: Array) -> Array:
    """Rotation vector (3,) in rad, in the base frame, that turns `current` (3, 3) into `target` (3, 3)."""
    delta = target @ current.T
    vector = np.array([delta[2, 1] - delta[1, 2], delta[0, 2] - delta[2, 0], delta[1, 0] - delta[0, 1]])
    sine = math.sqrt(vector @ vector) / 2.0
    cosine = (delta[0, 0] + delta[1, 1] + delta[2, 2] - 1.0) / 2.0
    if sine > 1e-9:
        return vector * (math.atan2(sine, cosine) / (2.0 * sine))
    if cosine > 0:
        return vector / 2.0
    # A half turn: delta + 1 is twice the axis times itself.
    column = int(np.argmax(np.diag(delta)))
    axis = delta[:, column] + np.eye(3)[column]
    return np.asarray(np.pi * axis / np.linalg.norm(axis))


def inverse_kinematics(
    position: Array,
    rotation: Array,
    start: Array,
    rest: Array,
    *,
    iterations: int = 20,
    damping: float = 1e-3,
    rest_gain: float = 0.025,
    tolerance: float = 1e-4,
) -> Array:
    """Joint vector (7,) in rad whose flange comes closest to a pose, by damped least squares from `start` (7,).

    The null space is pulled towards `rest` (7,), as DROID's `RobotIKSolver` does (gain 0.025). Stops when the pose is
    met to `tolerance` (m and rad). The result always lies within the joint limits; an unreachable pose gives the
    nearest one found.
    """
    joints = np.array(start, float)
    for _ in range(iterations):
        current, current_rotation, jacobian = flange_jacobian(joints)
        error = np.concatenate([position - current, rotation_error(current_rotation, rotation)])
        if np.abs(error).max() < tolerance:
            break
        pull = rest_gain * (rest - joints)
        gram = jacobian @ jacobian.T + damping * _EYE6
        step = pull + jacobian.T @ np.linalg.solve(gram, error - jacobian @ pull)
        joints = np.clip(joints + step, JOINT_LOWER, JOINT_UPPER)
    return joints
