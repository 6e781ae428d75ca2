"""What the gripper closes on, from what the cameras showed just before.

A gripper stops where it meets something, or closes on nothing. What is likely lies at one of two ends, and the mean
between them is never true; so its next position is told as probabilities of places between open and closed, and the
likeliest place is taken. Once that is decided, the pictures follow from it: what is held moves with the hand.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wvl_ros.world_model.geometry import MAPS_PER_VIEW, REACH_PER_VIEW
from wvl_ros.world_model.kinematics import STATE_DIM, STATE_SCALE, Kinematics
from wvl_ros.world_model.patches import VIEWS

BINS = 26  # from open (0) to closed (1)
_NEAR = 2  # bins beside the likeliest one that the position is averaged over
_NARROW, _WIDE, _HIDDEN = 32, 48, 128


class Grip(nn.Module):
    """Probabilities of the gripper's next position.

    Args:
        view_channels: channels of a view as patches. grid: patches along a side. actions: control steps a frame.
    """

    def __init__(self, view_channels: int, grid: int, actions: int) -> None:
        super().__init__()
        seen = view_channels + MAPS_PER_VIEW + REACH_PER_VIEW
        # Each view has filters of its own: the fingers are elsewhere in each.
        self.look_1 = nn.Conv2d(VIEWS * seen, VIEWS * _NARROW, 1, groups=VIEWS)
        self.look_2 = nn.Conv2d(VIEWS * _NARROW, VIEWS * _NARROW, 3, padding=1, groups=VIEWS)
        self.look_3 = nn.Conv2d(VIEWS * _NARROW, VIEWS * _WIDE, 3, 2, 1, groups=VIEWS)
        self.place = nn.Linear(VIEWS * _WIDE * (grid // 2) ** 2, _HIDDEN)
        self.known = nn.Linear(2 * STATE_DIM + 2 + actions + BINS, _HIDDEN)
        self.decide = nn.Sequential(nn.SiLU(), nn.Linear(_HIDDEN, _HIDDEN), nn.SiLU(), nn.Linear(_HIDDEN, BINS))
        self.register_buffer("scale", torch.tensor(STATE_SCALE), persistent=False)

    def forward(self, views: Tensor, maps: Tensor, now: Kinematics, then: Kinematics, commands: Tensor) -> Tensor:
        """Logits (B, 26).

        Args:
            views: (B, V, G, G, K) the last frame. maps: (B, V, G, G, 8) of `WorldModel.maps` of `then`.
            now, then: of the last frame, and of the next as the servo alone would have it. commands: (B, K) gripper's.
        """
        x = torch.cat([views, maps], 4).flatten(0, 1).permute(0, 3, 1, 2)
        x = x.unflatten(0, (-1, VIEWS)).flatten(1, 2)
        h = F.silu(self.look_1(x))
        h = F.silu(h + self.look_2(h))
        h = F.silu(self.look_3(h))
        state, after = now.state(), then.state()
        grips = [now.gripper_velocity * 10, now.gripper_command, commands, spread(now.gripper)]
        known = self.known(torch.cat([state, (after - state) / self.get_buffer("scale"), *grips], 1))
        return self.decide(self.place(h.flatten(1)) + known).float()


def spread(position: Tensor) -> Tensor:
    """Positions (B, 1) as probabilities (B, 26): of the two nearest places, by how near they are."""
    exact = position.clamp(0, 1) * (BINS - 1)
    places = torch.arange(BINS, device=position.device)
    return (1 - (exact - places).abs()).clamp(min=0)


def likeliest(logits: Tensor) -> Tensor:
    """Positions (B, 1) of logits (B, 26): the mean around the likeliest place."""
    places = torch.arange(BINS, device=logits.device)
    near = (places - logits.argmax(1, keepdim=True)).abs() <= _NEAR
    chances = logits.softmax(1) * near
    return (chances * places).sum(1, keepdim=True) / chances.sum(1, keepdim=True) / (BINS - 1)
