"""How the things on the table move: what the hand pushes, holds and lets go of, and where that stops the gripper.

One small network is asked about each thing in every control step, in the frame of the hand, so that a push looks the
same wherever on the table it happens. At the frames' 5 Hz it was wrong by half more: within a frame the hand moves by
more than its own width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wvl_ros.world_model.kinematics import Kinematics
from wvl_ros.world_model.things import Things

FACTS = 40
_WIDTH = 512
_WAY, _TURN, _CLOSING = 0.01, 0.1, 0.1  # usual changes in a control step: m, rad, of the gripper's position
_STIRS = 0.002  # m: what is further from the hand than its reach moves only if it moved more than that
_GRASPED = 0.06  # m: what is nearer may stop the gripper
_NEIGHBOUR = 0.08  # m, of things that may touch each other
_FAR = 9.0  # m


class Physics(nn.Module):
    """Moves `Things` by one control step.

    Attributes:
        REACH: m from the hand's tip, in which it may touch something.
    """

    REACH = 0.13

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(FACTS))
        self.register_buffer("deviation", torch.ones(FACTS))
        self.network = nn.Sequential(
            nn.Linear(FACTS, _WIDTH), nn.SiLU(), nn.Linear(_WIDTH, _WIDTH), nn.SiLU(),
            nn.Linear(_WIDTH, _WIDTH), nn.SiLU(), nn.Linear(_WIDTH, 5),
        )  # fmt: skip

    def forward(self, now: Kinematics, then: Kinematics, things: Things) -> tuple[Things, Kinematics]:
        """
        Args:
            now, then: the arm before and after the step; `then` with the gripper as if nothing were there.

        Returns:
            The things after it, and the arm, the gripper stopped by what it closes on.
        """
        facts, turned = see(now, then, things)
        apart = (things.place - then.state()[:, None, :3]).norm(dim=2) + _FAR * (1 - things.there)
        asked = ((apart < self.REACH) | (things.motion.norm(dim=2) > _STIRS)) & (things.there > 0)
        mean, deviation = self.get_buffer("mean"), self.get_buffer("deviation")
        seen = ((facts[asked] - mean) / deviation).clamp(-5, 5)  # most are out of reach, and are not computed
        told = facts.new_zeros(*asked.shape, 5).masked_scatter(asked[..., None], self.network(seen))
        motion = torch.cat([told[..., :2] @ turned.transpose(1, 2), told[..., 2:3]], 2) * _WAY
        spin = told[..., 3] * _TURN
        after = things._replace(place=things.place + motion, yaw=things.yaw + spin, motion=motion, spin=spin)
        closing = told[..., 4].gather(1, apart.argmin(1, keepdim=True)) * _CLOSING
        near = apart.amin(1, keepdim=True) < _GRASPED
        gripper = torch.where(near, now.gripper + closing, then.gripper).clamp(0, 1)
        return after, then._replace(gripper=gripper, gripper_velocity=gripper - now.gripper)


def see(now: Kinematics, then: Kinematics, things: Things) -> tuple[Tensor, Tensor]:
    """What the network is told of each thing (B, 10, FACTS), and the turn (B, 2, 2) from the table to the hand."""
    before, after = now.state(), then.state()
    tip_before, tip, x, z = before[:, :3], after[:, :3], after[:, 3:6], after[:, 6:9]
    opening = F.normalize(torch.linalg.cross(z, x)[:, :2], dim=1)
    turned = torch.stack([opening, torch.stack([-opening[:, 1], opening[:, 0]], 1)], 2)

    def local(ways: Tensor) -> Tensor:
        flat = ways if ways.dim() == 3 else ways[:, None]
        result = torch.cat([flat[..., :2] @ turned, flat[..., 2:]], 2)
        return result if ways.dim() == 3 else result[:, 0]

    place, half, there = things.place, things.half, things.there
    yaw = things.yaw - torch.atan2(opening[:, 1], opening[:, 0])[:, None]
    gap, gap_before = local(place - tip[:, None]), local(place - tip_before[:, None])
    cosine, sine = yaw.cos(), yaw.sin()
    inside = -torch.stack([cosine * gap[..., 0] + sine * gap[..., 1], cosine * gap[..., 1] - sine * gap[..., 0]], 2)
    parts = [gap / 0.03, gap_before / 0.03, (4 * yaw).cos()[..., None], (4 * yaw).sin()[..., None]]
    parts += [half[..., None] / 0.02, (place[..., 2:] - half[..., None]) / 0.03, inside / 0.03]
    parts += [local(things.motion) / _WAY, things.spin[..., None] / _TURN]
    count = place.shape[1]
    apart = (place[:, :, None] - place[:, None]).norm(dim=3) + _FAR * (1 - there)[:, None]
    apart = apart + _FAR * torch.eye(count, device=place.device)
    nearest = apart.argmin(2, keepdim=True)
    second = apart.scatter(2, nearest, _FAR).argmin(2, keepdim=True)
    for which in (nearest, second):
        close = torch.exp(-((apart.gather(2, which) / _NEIGHBOUR) ** 2))
        parts.append(local(place.gather(1, which.expand(-1, -1, 3)) - place) / 0.03 * close)
        if which is nearest:
            parts.append(half.gather(1, which[..., 0])[..., None] / 0.02 * close)
        parts.append(close)
    tilt = torch.cat([local(z) * z.new_tensor([3.0, 3.0, 0.0]), local(before[:, 6:9])[:, :2] * 3, x[:, 2:] * 3], 1)
    hand = [local(tip - tip_before) / 0.02, (tip[:, 2:] - 0.03) / 0.02, tilt]
    hand += [now.gripper * 2 - 1, then.gripper * 2 - 1, now.gripper_velocity * 10]
    hand += [then.gripper_command, now.gripper_command]
    parts.append(torch.cat(hand, 1)[:, None].expand(-1, count, -1))
    return torch.cat(parts, 2), turned
