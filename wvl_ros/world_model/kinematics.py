"""The arm in imagination: batched poses, measured and commanded.

Poses are DROID's `cartesian_position` (flange xyz in m, extrinsic xyz Euler angles in rad).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

TCP_OFFSET = 0.1034  # m from the flange along its z axis
TCP_TURN = -math.pi / 4  # of the Franka hand about the flange's z axis
STATE_DIM = 10
STATE_SCALE = (0.05,) * 3 + (0.15,) * 6 + (0.3,)  # a usual change of a state in one frame
GRIPPER = 18  # where the gripper's position stands in packed kinematics
ACROSS = torch.diag(torch.tensor([1.0, -1.0, 1.0]))  # a mirror in the base's frame: left becomes right
# In the flange's frame: the same mirror, through the middle of the hand (its fingers change places).
MIRRORED_HAND = torch.tensor(
    [
        [math.cos(2 * TCP_TURN), math.sin(2 * TCP_TURN), 0.0],
        [math.sin(2 * TCP_TURN), -math.cos(2 * TCP_TURN), 0.0],
        [0.0, 0.0, 1.0],
    ]
)


class Kinematics(NamedTuple):
    """Measured and commanded configuration of B arms, and how both moved in the last control step.

    position (B, 3), rotation (B, 3, 3), velocity (B, 6: m and rad a step), gripper (B, 1), gripper_velocity (B, 1), and
    the same for the command: commanded_position, commanded_rotation, commanded_velocity, gripper_command.
    """

    position: Tensor
    rotation: Tensor
    velocity: Tensor
    gripper: Tensor
    gripper_velocity: Tensor
    commanded_position: Tensor
    commanded_rotation: Tensor
    commanded_velocity: Tensor
    gripper_command: Tensor

    def pack(self) -> Tensor:
        """All of it as one tensor (B, 39)."""
        return torch.cat([part.flatten(1) for part in self], 1)

    @classmethod
    def unpack(cls, packed: Tensor) -> Kinematics:
        """The inverse of `pack`."""
        parts = list(packed.split([3, 9, 6, 1, 1, 3, 9, 6, 1], 1))
        parts[1], parts[6] = parts[1].unflatten(1, (3, 3)), parts[6].unflatten(1, (3, 3))
        return cls(*parts)

    @classmethod
    def at_rest(cls, pose: Tensor, gripper: Tensor, commanded: Tensor) -> Kinematics:
        """From measured poses (B, 6), gripper positions (B, 1) and commands (B, 7), nothing moving."""
        still = torch.zeros_like(pose)
        return cls(
            pose[:, :3], euler_to_matrix(pose[:, 3:]), still, gripper, torch.zeros_like(gripper),
            commanded[:, :3], euler_to_matrix(commanded[:, 3:6]), still, commanded[:, 6:],
        )  # fmt: skip

    @classmethod
    def recorded(cls, poses: Tensor, grippers: Tensor, commands: Tensor) -> Kinematics:
        """Of every step of a recording: measured poses (N, 6), grippers (N, 1), commands in force (N, 7)."""
        now = cls.at_rest(poses, grippers, commands)
        before = [torch.cat([part[:1], part[:-1]]) for part in now]
        last = cls(*before)
        return now._replace(
            velocity=difference(last.position, last.rotation, now.position, now.rotation),
            gripper_velocity=now.gripper - last.gripper,
            commanded_velocity=difference(
                last.commanded_position, last.commanded_rotation, now.commanded_position, now.commanded_rotation
            ),
        )

    def mirrored(self, rows: Tensor) -> Kinematics:
        """The same, but where `rows` (B,) is True as a mirror between left and right shows it."""
        other = self._replace(
            position=self.position @ ACROSS,
            rotation=ACROSS @ self.rotation @ MIRRORED_HAND,
            velocity=_mirrored_motion(self.velocity),
            commanded_position=self.commanded_position @ ACROSS,
            commanded_rotation=ACROSS @ self.commanded_rotation @ MIRRORED_HAND,
            commanded_velocity=_mirrored_motion(self.commanded_velocity),
        )
        pairs = zip(other, self, strict=True)
        return Kinematics(*(torch.where(rows.view(-1, *[1] * (b.dim() - 1)), a, b) for a, b in pairs))

    def state(self) -> Tensor:
        """What the network sees of the measured pose, (B, 10): TCP position, x and z axis of the hand, gripper."""
        return hand_state(self.position, self.rotation, self.gripper)

    def commanded_state(self) -> Tensor:
        """The same of the commanded pose, (B, 10)."""
        return hand_state(self.commanded_position, self.commanded_rotation, self.gripper_command)


def mirrored_actions(actions: Tensor, rows: Tensor) -> Tensor:
    """Absolute flange poses and gripper commands (B, 7), where `rows` (B,) is True in the mirror of `Kinematics`."""
    rotation = ACROSS @ euler_to_matrix(actions[:, 3:6]) @ MIRRORED_HAND
    other = torch.cat([actions[:, :3] @ ACROSS, matrix_to_euler(rotation), actions[:, 6:]], 1)
    return torch.where(rows[:, None], other, actions)


def hand_state(position: Tensor, rotation: Tensor, gripper: Tensor) -> Tensor:
    """(B, 10): TCP position in m, the hand's x and z axes, gripper (B, 1); from the flange's position and rotation."""
    x = rotation[:, :, 0] * math.cos(TCP_TURN) + rotation[:, :, 1] * math.sin(TCP_TURN)
    z = rotation[:, :, 2]
    return torch.cat([position + TCP_OFFSET * z, x, z, gripper], 1)


def euler_to_matrix(euler: Tensor) -> Tensor:
    """Rotation (B, 3, 3) of extrinsic xyz Euler angles (B, 3) in rad."""
    (cx, cy, cz), (sx, sy, sz) = euler.cos().unbind(1), euler.sin().unbind(1)
    rows = [
        cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx,
        sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx,
        -sy, cy * sx, cy * cx,
    ]  # fmt: skip
    return torch.stack(rows, 1).view(-1, 3, 3)


def rotvec_to_matrix(vector: Tensor) -> Tensor:
    """Rotation (B, 3, 3) of rotation vectors (B, 3) in rad."""
    square = (vector * vector).sum(1)[:, None, None]
    angle = square.clamp(min=1e-16).sqrt()
    zero = torch.zeros_like(vector[:, 0])
    x, y, z = vector.unbind(1)
    skew = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], 1).view(-1, 3, 3)
    half = torch.sinc(angle / (2 * math.pi))
    eye = torch.eye(3, dtype=vector.dtype, device=vector.device)
    return eye + torch.sinc(angle / math.pi) * skew + 0.5 * half * half * (skew @ skew)


def matrix_to_rotvec(matrix: Tensor) -> Tensor:
    """Rotation vector (B, 3) in rad of rotations (B, 3, 3) of less than a half turn."""
    vee = torch.stack(
        [
            matrix[:, 2, 1] - matrix[:, 1, 2],
            matrix[:, 0, 2] - matrix[:, 2, 0],
            matrix[:, 1, 0] - matrix[:, 0, 1],
        ],
        1,
    )
    sine = (vee * vee).sum(1).clamp(min=1e-16).sqrt() / 2
    cosine = (matrix.diagonal(dim1=1, dim2=2).sum(1) - 1) / 2
    scale = torch.where(sine > 1e-6, torch.atan2(sine, cosine) / sine, torch.ones_like(sine))
    return vee * 0.5 * scale[:, None]


def matrix_to_euler(rotation: Tensor) -> Tensor:
    """Extrinsic xyz Euler angles (B, 3) in rad of rotations (B, 3, 3)."""
    x = torch.atan2(rotation[:, 2, 1], rotation[:, 2, 2])
    y = torch.asin((-rotation[:, 2, 0]).clamp(-1, 1))
    z = torch.atan2(rotation[:, 1, 0], rotation[:, 0, 0])
    return torch.stack([x, y, z], 1)


def difference(position: Tensor, rotation: Tensor, next_position: Tensor, next_rotation: Tensor) -> Tensor:
    """(B, 6) m and rad, in the base frame: what leads from one pose to the next."""
    return torch.cat([next_position - position, matrix_to_rotvec(next_rotation @ rotation.transpose(1, 2))], 1)


def _mirrored_motion(motion: Tensor) -> Tensor:
    """(B, 6): a way is mirrored; what turned to the left turns to the right."""
    return torch.cat([motion[:, :3] @ ACROSS, -motion[:, 3:] @ ACROSS], 1)
