"""The servo in imagination: the small learned lag of a stiff arm behind its commands.

Because commands are absolute, nothing drifts: the next pose is the commanded one plus a correction of a few
millimetres.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wvl_ros.world_model.kinematics import (
    TCP_OFFSET,
    Kinematics,
    difference,
    euler_to_matrix,
    mirrored_actions,
    rotvec_to_matrix,
)

_WIDTH = 256
_MAX_LAG, _MAX_TURN = 0.15, 0.4  # m and rad; the leash of a command is half of it


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
            nn.Linear(24 + 9 + 4, _WIDTH), nn.SiLU(), nn.Linear(_WIDTH, _WIDTH), nn.SiLU(),
            nn.Linear(_WIDTH, _WIDTH), nn.SiLU(), nn.Linear(_WIDTH, 7),
        )  # fmt: skip
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
        step = difference(k.commanded_position, k.commanded_rotation, action[:, :3], rotation)
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
        moved = difference(k.commanded_position, k.commanded_rotation, position, rotation)
        return k._replace(
            commanded_position=position,
            commanded_rotation=rotation,
            commanded_velocity=moved,
            gripper_command=action[:, 6:7].clamp(0.0, 1.0),
        )

    def features(self, k: Kinematics, commanded: Kinematics) -> Tensor:
        """(B, 24) m and rad: error to the last command, last motion, new and last command increment."""
        error = difference(k.commanded_position, k.commanded_rotation, k.position, k.rotation)
        return torch.cat([error, k.velocity, commanded.commanded_velocity, k.commanded_velocity], 1)

    def forward(self, k: Kinematics, action: Tensor, calibrated: Tensor) -> Kinematics:
        """The configuration one control step after `k` under `action` (B, 7).

        `calibrated` (B,): 1 for the calibrated rig, -1 for it in a mirror, else 0.
        """
        mirrored = calibrated < 0
        if not bool(mirrored.any()):
            return self._follow(k, action, calibrated)
        # The mirror is not perfect (a servo hangs to one side): what follows there is the true arm.
        after = self._follow(k.mirrored(mirrored), mirrored_actions(action, mirrored), calibrated.abs())
        return after.mirrored(mirrored)

    def _follow(self, k: Kinematics, action: Tensor, calibrated: Tensor) -> Kinematics:
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
            velocity=difference(k.position, k.rotation, position, rotation),
            gripper=gripper,
            gripper_velocity=gripper - k.gripper,
        )


@torch.no_grad()
def fit_linear(tracking: Tracking, before: Kinematics, action: Tensor, after: Kinematics, calibrated: bool) -> None:
    """Sets the linear part of one of the two servos by least squares on recorded single steps (B of each)."""
    commanded = tracking.command(before, action, torch.full((len(action),), float(calibrated)))
    u = tracking.features(before, commanded)
    error = difference(commanded.commanded_position, commanded.commanded_rotation, after.position, after.rotation)
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
