"""FR3 kinematics in numpy: the flange pose of a joint vector, its Jacobian, and damped least squares back.

Denavit-Hartenberg parameters (Craig's convention) as published in Franka's robot documentation, the same for Panda and FR3.
"""

from __future__ import annotations

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


def _frames(joints: Array) -> tuple[Array, Array, Array]:
    """Joint frames of one configuration: rotation (3, 3) and position (3,) of the last, axes and origins (2, 7, 3)."""
    cos_q, sin_q = np.cos(joints), np.sin(joints)
    rotation = np.eye(3)
    position = np.zeros(3)
    axes = np.empty((2, 7, 3))
    for i in range(7):
        ca, sa = _COS_ALPHA[i], _SIN_ALPHA[i]
        position = position + rotation @ (_A[i], -sa * _D[i], ca * _D[i])
        local = np.array(
            [
                [cos_q[i], -sin_q[i], 0.0],
                [sin_q[i] * ca, cos_q[i] * ca, -sa],
                [sin_q[i] * sa, cos_q[i] * sa, ca],
            ]
        )
        rotation = rotation @ local
        axes[0, i] = rotation[:, 2]
        axes[1, i] = position
    return rotation, position + rotation[:, 2] * _FLANGE, axes


def flange_pose(joints: Array) -> tuple[Array, Array]:
    """Flange (panda_link8) position (3,) in m and rotation (3, 3) of a joint vector (7,) in rad."""
    rotation, position, _ = _frames(np.asarray(joints, float))
    return position, rotation


def flange_jacobian(joints: Array) -> tuple[Array, Array, Array]:
    """Flange position (3,), rotation (3, 3) and geometric Jacobian (6, 7): linear rows in m/rad, then angular."""
    rotation, position, axes = _frames(np.asarray(joints, float))
    jacobian = np.empty((6, 7))
    jacobian[:3] = np.cross(axes[0], position - axes[1]).T
    jacobian[3:] = axes[0].T
    return position, rotation, jacobian


def rotation_error(current: Array, target: Array) -> Array:
    """Rotation vector (3,) in rad, in the base frame, that turns `current` (3, 3) into `target` (3, 3)."""
    delta = target @ current.T
    vector = np.array([delta[2, 1] - delta[1, 2], delta[0, 2] - delta[2, 0], delta[1, 0] - delta[0, 1]])
    sine = np.linalg.norm(vector) / 2.0
    cosine = (np.trace(delta) - 1.0) / 2.0
    if sine < 1e-9:
        if cosine > 0:
            return vector / 2.0
        # A half turn: the axis is the eigenvector of eigenvalue 1.
        axis = np.sqrt(np.maximum((np.diag(delta) + 1.0) / 2.0, 0.0))
        signs = np.sign(delta[np.argmax(axis)])
        signs[signs == 0] = 1.0
        return np.pi * axis * signs
    return vector / (2.0 * sine) * np.arctan2(sine, cosine)


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

    The null space is pulled towards `rest` (7,), as DROID's `RobotIKSolver` does (gain 0.025). Stops when the pose is met
    to `tolerance` (m and rad). The result always lies within the joint limits; an unreachable pose gives the nearest one found.
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
