"""The arm in imagination: batched poses, and the small learned lag of a stiff servo behind its commands.

Poses are DROID's `cartesian_position` (flange xyz in m, extrinsic xyz Euler angles in rad). Because commands are
absolute, nothing drifts: the next pose is the commanded one plus a correction of a few millimetres.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

TCP_OFFSET = 0.1034  # m from the flange along its z axis
TCP_TURN = -math.pi / 4  # of the Franka hand about the flange's z axis
STATE_DIM = 10
_MAX_LAG, _MAX_TURN = 0.15, 0.4  # m and rad; the leash of a command is half of it


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
            velocity=_difference(last.position, last.rotation, now.position, now.rotation),
            gripper_velocity=now.gripper - last.gripper,
            commanded_velocity=_difference(
                last.commanded_position, last.commanded_rotation, now.commanded_position, now.commanded_rotation
            ),
        )

    def state(self) -> Tensor:
        """What the network sees of the measured pose, (B, 10): TCP position, x and z axis of the hand, gripper."""
        return hand_state(self.position, self.rotation, self.gripper)

    def commanded_state(self) -> Tensor:
        """The same of the commanded pose, (B, 10)."""
        return hand_state(self.commanded_position, self.commanded_rotation, self.gripper_command)


class Tracking(nn.Module):
    """One control step (1/15 s) of the servo: the command limited as a world does it, then the lag behind it.

    Two servos: that of the calibrated rig, fitted closely, and a linear one for all others (DROID's arms are soft, and
    from many labs), which knows no floor.

    Args:
        max_linear: m a step a command may move. max_rotation: rad a step.
        lowest_tcp: m, no command is sent below this height; None where there is no floor.
    """

    def __init__(self, max_linear: float, max_rotation: float, lowest_tcp: float | None) -> None:
        super().__init__()
        self.max_linear, self.max_rotation, self.lowest_tcp = max_linear, max_rotation, lowest_tcp
        self.linear = nn.Linear(24, 6)
        self.local = nn.Sequential(nn.Linear(9, 64), nn.SiLU(), nn.Linear(64, 6 * 24))
        self.residual = nn.Sequential(
            nn.Linear(24 + 9 + 4, 96), nn.SiLU(), nn.Linear(96, 96), nn.SiLU(), nn.Linear(96, 7)
        )
        self.other_linear = nn.Linear(24, 6)
        self.other_gripper = nn.Linear(4, 1)
        for layer in (self.linear, self.local[-1], self.residual[-1], self.other_linear, self.other_gripper):
            nn.init.zeros_(layer.weight)  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        with torch.no_grad():  # a gripper that closes a third of the way in each step
            self.other_gripper.weight.copy_(torch.tensor([[-0.3, 0.0, 0.0, 0.3]]))

    def command(self, k: Kinematics, action: Tensor, calibrated: Tensor) -> Kinematics:
        """`k` with the command (B, 7: pose and gripper 0..1) in force that a world would make of `action`.

        `calibrated` (B,): 1 for the calibrated rig, which has the floor, else 0.
        """
        rotation = euler_to_matrix(action[:, 3:6])
        step = _difference(k.commanded_position, k.commanded_rotation, action[:, :3], rotation)
        linear, turn = step[:, :3], step[:, 3:]
        linear_norm, turn_norm = linear.norm(dim=1, keepdim=True), turn.norm(dim=1, keepdim=True)
        # Either one too long: DROID shortens each to its own limit.
        linear = linear * (self.max_linear / linear_norm.clamp(min=1e-9)).clamp(max=1.0)
        turn = turn * (self.max_rotation / turn_norm.clamp(min=1e-9)).clamp(max=1.0)
        position = k.commanded_position + linear
        rotation = rotvec_to_matrix(turn) @ k.commanded_rotation
        if self.lowest_tcp is not None:
            tcp = position[:, 2] + TCP_OFFSET * rotation[:, 2, 2]
            lift = (self.lowest_tcp - tcp).clamp(min=0.0) * calibrated
            position = torch.cat([position[:, :2], (position[:, 2] + lift)[:, None]], 1)
        moved = _difference(k.commanded_position, k.commanded_rotation, position, rotation)
        return k._replace(
            commanded_position=position,
            commanded_rotation=rotation,
            commanded_velocity=moved,
            gripper_command=action[:, 6:7].clamp(0.0, 1.0),
        )

    def features(self, k: Kinematics, commanded: Kinematics) -> Tensor:
        """(B, 24) m and rad: error to the last command, last motion, new and last command increment."""
        error = _difference(k.commanded_position, k.commanded_rotation, k.position, k.rotation)
        return torch.cat([error, k.velocity, commanded.commanded_velocity, k.commanded_velocity], 1)

    def forward(self, k: Kinematics, action: Tensor, calibrated: Tensor) -> Kinematics:
        """The configuration one control step after `k` under `action` (B, 7); `calibrated` (B,) as in `command`."""
        c = self.command(k, action, calibrated)
        u = self.features(k, c)
        place = torch.cat([k.position, k.rotation[:, :, 0], k.rotation[:, :, 2]], 1)
        grip = torch.cat([k.gripper, k.gripper_velocity * 10, k.gripper_command, c.gripper_command], 1)
        free = self.residual(torch.cat([u * 20, place, grip], 1))
        local = (self.local(place).view(-1, 6, 24) @ u[..., None])[..., 0]
        own = calibrated[:, None] > 0
        error = torch.where(own, self.linear(u) + local + free[:, :6] * 0.01, self.other_linear(u))
        # Far from where it was fitted the servo may say anything: no arm lags further than this behind its command.
        error = torch.cat([error[:, :3].clamp(-_MAX_LAG, _MAX_LAG), error[:, 3:].clamp(-_MAX_TURN, _MAX_TURN)], 1)
        position = c.commanded_position + error[:, :3]
        rotation = rotvec_to_matrix(error[:, 3:]) @ c.commanded_rotation
        closing = torch.where(own, k.gripper_velocity + free[:, 6:] * 0.1, self.other_gripper(grip))
        gripper = (k.gripper + closing).clamp(0.0, 1.0)
        return c._replace(
            position=position,
            rotation=rotation,
            velocity=_difference(k.position, k.rotation, position, rotation),
            gripper=gripper,
            gripper_velocity=gripper - k.gripper,
        )


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


@torch.no_grad()
def fit_linear(tracking: Tracking, before: Kinematics, action: Tensor, after: Kinematics, calibrated: bool) -> None:
    """Sets the linear part of one of the two servos by least squares on recorded single steps (B of each)."""
    commanded = tracking.command(before, action, torch.full((len(action),), float(calibrated)))
    u = tracking.features(before, commanded)
    error = _difference(commanded.commanded_position, commanded.commanded_rotation, after.position, after.rotation)
    usual = (u.abs().amax(1) < 0.2) & (error.abs().amax(1) < 0.2)
    weight, bias = _least_squares(u[usual], error[usual])
    layer = tracking.linear if calibrated else tracking.other_linear
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)
    if not calibrated:
        grip = [before.gripper, before.gripper_velocity * 10, before.gripper_command, commanded.gripper_command]
        weight, bias = _least_squares(torch.cat(grip, 1), after.gripper - before.gripper)
        tracking.other_gripper.weight.copy_(weight)
        tracking.other_gripper.bias.copy_(bias)


def _least_squares(x: Tensor, y: Tensor, ridge: float = 1e-3) -> tuple[Tensor, Tensor]:
    """Weight and bias of a linear layer from x (N, D) to y (N, E), slightly drawn towards zero."""
    mean_x, mean_y = x.mean(0), y.mean(0)
    gram = (x - mean_x).T @ (x - mean_x)
    gram = gram + torch.diag(ridge * gram.diagonal() + 1e-9)
    weight = torch.linalg.solve(gram, (x - mean_x).T @ (y - mean_y)).T
    return weight, mean_y - weight @ mean_x


def _difference(position: Tensor, rotation: Tensor, next_position: Tensor, next_rotation: Tensor) -> Tensor:
    """(B, 6) m and rad, in the base frame: what leads from one pose to the next."""
    return torch.cat([next_position - position, matrix_to_rotvec(next_rotation @ rotation.transpose(1, 2))], 1)
