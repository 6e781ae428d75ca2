"""How the things on the table move: what the hand pushes, holds and lets go of, and where that stops hand and gripper.

One small network is asked about each thing in every control step, in the frame of the hand, so that a push looks the
same wherever on the table it happens. The hand has two sides that are alike, and a box four: each thing is looked at
as if it lay in the quarter before one finger, its nearest side ahead. At the frames' 5 Hz it was wrong by half more:
within a frame the hand moves by more than its own width.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wvl_ros.world_model.geometry import HALF_OPENING
from wvl_ros.world_model.kinematics import Kinematics, difference
from wvl_ros.world_model.things import SIDES, Things

FACTS = 53
_WIDTH = 512
_WAY, _TURN, _CLOSING = 0.01, 0.1, 0.1  # usual changes in a control step: m, rad, of the gripper's position
_YIELD = 0.003  # m
_STIRS = 0.002  # m: what is further from the hand than its reach moves only if it moved more than that
_GRASPED = 0.06  # m: what is nearer may stop the gripper and the hand
_NEIGHBOUR = 0.08  # m, of things that may touch each other
_FAR = 9.0  # m
_UNIT = 0.03  # m


class Seen(NamedTuple):
    """What the network is told of each thing: `facts` (B, 10, FACTS), in frames that `frame` (B, 10, 2, 2) turns to the
    table's.
    """

    facts: Tensor
    frame: Tensor


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
            nn.Linear(_WIDTH, _WIDTH), nn.SiLU(), nn.Linear(_WIDTH, 8),
        )  # fmt: skip

    def forward(self, now: Kinematics, then: Kinematics, things: Things) -> tuple[Things, Kinematics]:
        """
        Args:
            now, then: the arm before and after the step; `then` as if nothing were there.

        Returns:
            The things after it, and the arm: what it presses on stops it, and what it closes on its gripper.
        """
        seen = see(now, then, things)
        apart = (things.place - then.state()[:, None, :3]).norm(dim=2) + _FAR * (1 - things.there)
        asked = ((apart < self.REACH) | (things.motion.norm(dim=2) > _STIRS)) & (things.there > 0)
        mean, deviation = self.get_buffer("mean"), self.get_buffer("deviation")
        facts = ((seen.facts[asked] - mean) / deviation).clamp(-5, 5)  # most are out of reach, and are not computed
        told = seen.facts.new_zeros(*asked.shape, 8).masked_scatter(asked[..., None], self.network(facts))
        motion, given = (_to_table(part, seen.frame) for part in (told[..., :3] * _WAY, told[..., 5:] * _YIELD))
        spin = told[..., 3] * _TURN * torch.linalg.det(seen.frame)
        after = things._replace(place=things.place + motion, yaw=things.yaw + spin, motion=motion, spin=spin)
        nearest = apart.argmin(1, keepdim=True)
        near = apart.gather(1, nearest) < _GRASPED
        closing = told[..., 4].gather(1, nearest) * _CLOSING
        gripper = torch.where(near, now.gripper + closing, then.gripper).clamp(0, 1)
        given = given.gather(1, nearest[..., None].expand(-1, 1, 3))[:, 0] * near
        position = then.position + given
        then = then._replace(
            position=position,
            velocity=difference(now.position, now.rotation, position, then.rotation),
            gripper=gripper,
            gripper_velocity=gripper - now.gripper,
        )
        return after, then


def see(now: Kinematics, then: Kinematics, things: Things) -> Seen:
    """What the network is told before a control step."""
    before, after = now.state(), then.state()
    tip_before, tip, x, z = before[:, :3], after[:, :3], after[:, 3:6], after[:, 6:9]
    across = torch.linalg.cross(z, x)
    opening = F.normalize(across[:, :2], dim=1)
    turned = torch.stack([opening, torch.stack([-opening[:, 1], opening[:, 0]], 1)], 2)
    place, half, there = things.place, things.half, things.there
    side = torch.where((place - tip[:, None])[..., :2] @ turned < 0, -1.0, 1.0)
    frame = turned[:, None] * side[:, :, None]  # (B, 10, 2, 2)

    def local(ways: Tensor) -> Tensor:
        """Ways (B, 10, 3) of the table, or (B, 3) of the hand, as each thing is looked at."""
        ways = ways if ways.dim() == 3 else ways[:, None].expand_as(place)
        return torch.cat([(ways[..., None, :2] @ frame)[..., 0, :], ways[..., 2:]], 2)

    yaw = (things.yaw - torch.atan2(opening[:, 1], opening[:, 0])[:, None]) * side.prod(2)
    yaw = (yaw + math.pi / 4) % (math.pi / 2) - math.pi / 4  # of the side that lies nearest to the fingers' way
    yaw = yaw * (half > SIDES)
    cosine, sine = yaw.cos(), yaw.sin()

    def inside(gap: Tensor) -> Tensor:
        """Where (B, 10, 2), across the table, something lies from a thing, along its sides."""
        return torch.stack([cosine * gap[..., 0] + sine * gap[..., 1], cosine * gap[..., 1] - sine * gap[..., 0]], 2)

    gap, gap_before = local(place - tip[:, None]), local(place - tip_before[:, None])
    parts = [gap / _UNIT, gap_before / _UNIT, (yaw / 0.5)[..., None], half[..., None] / 0.02]
    parts += [(place[..., 2:] - half[..., None]) / _UNIT, local(things.motion) / _WAY]
    parts += [(things.spin * side.prod(2) / _TURN)[..., None]]
    for k, state, away in ((now, before, gap_before), (then, after, gap)):
        width = HALF_OPENING * (1 - k.gripper)[:, None]
        finger = local(torch.linalg.cross(state[:, 6:9], state[:, 3:6])) * width * side[..., :1]
        parts += [inside(way - away) / _UNIT for way in (finger, -finger)] + [inside(-away) / _UNIT]
    count = place.shape[1]
    apart = (place[:, :, None] - place[:, None]).norm(dim=3) + _FAR * (1 - there)[:, None]
    apart = apart + _FAR * torch.eye(count, device=place.device)
    nearest = apart.argmin(2, keepdim=True)
    second = apart.scatter(2, nearest, _FAR).argmin(2, keepdim=True)
    for which in (nearest, second):
        close = torch.exp(-((apart.gather(2, which) / _NEIGHBOUR) ** 2))
        parts.append(local(place.gather(1, which.expand(-1, -1, 3)) - place) / _UNIT * close)
        if which is nearest:
            parts.append(half.gather(1, which[..., 0])[..., None] / 0.02 * close)
        parts.append(close)
    # How fast the hand is at both ends of the step: by the step before, and by how far its command pulls it.
    pull = then.commanded_position - then.position
    parts += [local(now.velocity[:, :3]) / 0.02, local(pull) / 0.02]
    parts += [local(tip - tip_before) / 0.02, local(z)[..., :2] * 3, local(before[:, 6:9])[..., :2] * 3]
    hand = [(tip[:, 2:] - 0.03) / 0.02, now.gripper * 2 - 1, then.gripper * 2 - 1, now.gripper_velocity * 10]
    hand += [then.gripper_command, now.gripper_command]
    parts.append(torch.cat(hand, 1)[:, None].expand(-1, count, -1))
    return Seen(torch.cat(parts, 2), frame)


def _to_table(ways: Tensor, frame: Tensor) -> Tensor:
    """Ways (B, 10, 3) as each thing is looked at, as the table has them."""
    return torch.cat([(frame @ ways[..., :2, None])[..., 0], ways[..., 2:]], 2)
