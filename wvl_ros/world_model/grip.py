"""Where the gripper stops, by what the wrist's camera sees: where cameras are not calibrated, or nothing was found.

A gripper stops where it meets something, or closes on nothing. What is likely lies at one of two ends, and the mean
between them is never true; so its next position is told as probabilities of places between open and closed, and the
likeliest place is taken.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wvl_ros.world_model.kinematics import STATE_DIM, STATE_SCALE, Kinematics

BINS = 26  # of the gripper's position, from open (0) to closed (1)
_NEAR = 2  # bins beside the likeliest one that the position is averaged over
_NARROW, _HIDDEN = 32, 128


class GripNetwork(nn.Module):
    """Tells the gripper's next position.

    Args:
        view_channels: channels of a view as patches. grid: patches along a side. actions: control steps a frame.
    """

    def __init__(self, view_channels: int, grid: int, actions: int) -> None:
        super().__init__()
        self.wrist_1 = nn.Conv2d(view_channels, _NARROW, 1)
        self.wrist_2 = nn.Conv2d(_NARROW, _NARROW, 3, 2, 1)
        self.wrist = nn.Linear(_NARROW * (grid // 2) ** 2, _HIDDEN)
        self.known = nn.Linear(2 * STATE_DIM + 2 + actions + BINS, _HIDDEN)
        self.think = nn.Sequential(nn.SiLU(), nn.Linear(_HIDDEN, _HIDDEN), nn.SiLU())
        self.grip = nn.Linear(_HIDDEN, BINS)
        self.register_buffer("scale", torch.tensor(STATE_SCALE), persistent=False)

    def forward(self, wrist: Tensor, now: Kinematics, then: Kinematics, commands: Tensor) -> Tensor:
        """Logits (B, 26).

        Args:
            wrist: (B, G, G, K) the last frame's wrist view as patches. now, then: of the last frame, and of the next
                one as the servo alone would have it. commands: (B, K) gripper's.
        """
        at_hand = F.silu(self.wrist_2(F.silu(self.wrist_1(wrist.permute(0, 3, 1, 2)))))
        state, after = now.state(), then.state()
        facts = [state, (after - state) / self.get_buffer("scale"), now.gripper_velocity * 10, now.gripper_command]
        hidden = self.wrist(at_hand.flatten(1)) + self.known(torch.cat([*facts, commands, spread(now.gripper)], 1))
        return torch.as_tensor(self.grip(self.think(hidden)).float())


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
