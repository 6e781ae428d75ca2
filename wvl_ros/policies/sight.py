"""Along which line each pixel of a camera looks, as learned from what is seen where: a calibration without a board.

A camera that stands still looks along fixed lines; one on the hand along lines that the hand's pose turns and carries.
Lines depend on the pixel and the pose alone, never on what is seen, so no scene can be learned by heart.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

CENTER, UNIT = (0.5, 0.0), 0.08  # m: places across the table are counted in units of 8 cm from there
HAND_HEIGHT, HEIGHT_UNIT = 0.13, 0.12  # m, of the flange where most is done; and in which heights above it are counted
_THING_HEIGHT, _THING_UNIT = 0.03, 0.05  # m, the same of what lies on a table
_STEEPEST = 0.3  # at least so far down looks each line that is thought to meet the table, of its length


def across(position: Tensor) -> Tensor:
    """Places (..., 2) across the table, in units, of positions (..., 2 or 3) in m."""
    return (position[..., :2] - position.new_tensor(CENTER)) / UNIT


class FixedSight(nn.Module):
    """Of a camera that stands still."""

    def __init__(self, things: int) -> None:
        super().__init__()
        self.ray = _rays(4)
        self.level = nn.Parameter(torch.zeros(things))  # at which each thing is looked for

    def forward(self, pixels: Tensor, state: Tensor) -> Tensor:
        """Where pixels (N, 2), -1..1, would see things: (B, things, N, 2) across, for states (B, 10)."""
        foot, aside = self._line(pixels)
        return (foot + self.level[:, None, None] * aside).expand(len(state), -1, -1, -1)

    def at(self, pixels: Tensor, height: Tensor) -> Tensor:
        """Where they would see what is as high as a flange of heights (B,) in m: (B, N, 2) across."""
        foot, aside = self._line(pixels)
        return foot + ((height - HAND_HEIGHT) / HEIGHT_UNIT)[:, None, None] * aside

    def _line(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Where each pixel looks at `HAND_HEIGHT`, and how far aside it looks a unit of height above."""
        line = self.ray(pixels)
        return line[:, :2], line[:, 2:]


class CarriedSight(nn.Module):
    """Of a camera on the hand: lines in the flange's frame."""

    def __init__(self, things: int) -> None:
        super().__init__()
        self.ray = _rays(3)
        self.origin = nn.Parameter(torch.zeros(3))  # m from the flange
        self.level = nn.Parameter(torch.zeros(things))

    def forward(self, pixels: Tensor, state: Tensor) -> Tensor:
        """As `FixedSight.forward`."""
        aside, along = self.ray(pixels).split([2, 1], 1)
        ray = torch.cat([aside, 1 + 0.1 * along], 1)  # about along the flange's z, which points down
        first, second = state[:, 3:6], state[:, 6:9]
        rotation = torch.stack([first, second, torch.linalg.cross(first, second)], -1)
        eye = state[:, :3] + rotation @ self.origin
        line = ray @ rotation.transpose(1, 2)  # (B, N, 3)
        down = (eye[:, None, 2] - _THING_HEIGHT - _THING_UNIT * self.level)[..., None]  # (B, things, 1)
        length = down / (-line[:, None, :, 2]).clamp(min=_STEEPEST)
        return across(eye[:, None, None, :2] + length[..., None] * line[:, None, :, :2])


def _rays(outputs: int) -> nn.Sequential:
    layers = perceptron(2, outputs)
    first = layers[0]
    assert isinstance(first, nn.Linear)
    with torch.no_grad():  # or all pixels look the same way at first, and of some cameras nothing is learned for long
        first.weight.mul_(4)
    return layers


def perceptron(inputs: int, outputs: int) -> nn.Sequential:
    """Two hidden layers of 64."""
    return nn.Sequential(nn.Linear(inputs, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, outputs))
