"""Poses as the large world models want them: absolute and normalised (Ctrl-World), relative to the last (Cosmos).

A pose is DROID's: flange xyz in m, extrinsic xyz Euler angles in rad, gripper 0 open .. 1 closed; 7 numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wvl_ros.world_model.kinematics import Kinematics, euler_to_matrix, matrix_to_euler

# 1st and 99th percentile of DROID's poses, as Ctrl-World's published weights were trained with (its stat.json).
DROID_LOW = (0.267666, -0.441716, -0.042784, -3.137372, -1.214391, -2.115816, 0.0)
DROID_HIGH = (0.781050, 0.436672, 0.784400, 3.137465, 0.903914, 1.991585, 0.991189)
RELATIVE_SCALE = 20.0  # of the six pose numbers, in Cosmos' action-conditioned weights


def measured_pose(packed: Tensor) -> Tensor:
    """(..., 7): where the arm is, of packed kinematics (..., 39)."""
    k = Kinematics.unpack(packed.reshape(-1, packed.shape[-1]))
    return torch.cat([k.position, matrix_to_euler(k.rotation), k.gripper], 1).reshape(*packed.shape[:-1], 7)


def commanded_pose(packed: Tensor) -> Tensor:
    """(..., 7): where the arm is told to be, of packed kinematics (..., 39)."""
    k = Kinematics.unpack(packed.reshape(-1, packed.shape[-1]))
    turn = matrix_to_euler(k.commanded_rotation)
    return torch.cat([k.commanded_position, turn, k.gripper_command], 1).reshape(*packed.shape[:-1], 7)


def state_of(packed: Tensor) -> Tensor:
    """(..., 10): `Kinematics.state` of packed kinematics (..., 39)."""
    k = Kinematics.unpack(packed.reshape(-1, packed.shape[-1]))
    return k.state().reshape(*packed.shape[:-1], -1)


def normalise(poses: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Poses (..., 7) so that `low` is -1 and `high` is 1, and nothing is beyond."""
    return (2 * (poses - low) / (high - low + 1e-8) - 1).clamp(-1, 1)


def relative(poses: Tensor) -> Tensor:
    """Of poses (B, T + 1, 7), each of the last T in the frame of the one before: (B, T, 7).

    As Cosmos' action-conditioned weights expect it: position and Euler angles (ZYX, that is extrinsic xyz) times 20,
    and the gripper as it is then.
    """
    position, gripper = poses[..., :3], poses[:, 1:, 6:]
    rotation = euler_to_matrix(poses[..., 3:6].reshape(-1, 3)).reshape(*poses.shape[:2], 3, 3)
    back = rotation[:, :-1].transpose(-1, -2)
    moved = (back @ (position[:, 1:] - position[:, :-1])[..., None])[..., 0]
    turned = matrix_to_euler((back @ rotation[:, 1:]).flatten(0, 1)).reshape(*moved.shape)
    return torch.cat([moved * RELATIVE_SCALE, turned * RELATIVE_SCALE, gripper], -1)
