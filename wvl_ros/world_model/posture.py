"""Where the arm's links are, told from the flange's pose alone: what fills most of a camera's picture moves with it.

A seven-joint arm could hold its elbow anywhere on a circle, but one that is driven by poses from the same start hardly
does: on the tabletop the elbow is known to 3 mm, the wrist to 2 mm (medians).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wvl_ros.world_model.kinematics import ACROSS, TCP_OFFSET, Kinematics

LINKS = 2  # elbow and wrist
FLANGE_OFFSET = 0.107  # m from the last joint to the flange, along its z axis
_HAND = 0.09  # m, half the width of the Franka hand
_PALM = 0.06  # m behind the TCP
_HALF_OPENING = 0.04  # m, of its fingers

# Segments as (from, to, radius in m, map): the arm, the hand, and the fingers have a map each.
_SEGMENTS = (
    ("elbow", "wrist", 0.06, 0),
    ("wrist", "joint", 0.055, 0),
    ("joint", "palm", 0.045, 0),
    ("hand_left", "hand_right", 0.03, 1),
    ("finger_left", "tip_left", 0.011, 2),
    ("finger_right", "tip_right", 0.011, 2),
)
MAPS = 3
RADII = tuple(radius for *_, radius, _ in _SEGMENTS)
MAP_OF = tuple(number for *_, number in _SEGMENTS)


class Posture(nn.Module):
    """Elbow and wrist from the flange's pose, fitted once on recorded joints, see `wvl_ros.training.posture`."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(9, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 3 * LINKS))
        self.register_buffer("input_mean", torch.zeros(9))
        self.register_buffer("input_scale", torch.ones(9))
        self.register_buffer("mean", torch.zeros(3 * LINKS))
        self.register_buffer("scale", torch.zeros(3 * LINKS))

    def forward(self, k: Kinematics) -> Tensor:
        """(B, 2, 3) m in the base frame."""
        x = torch.cat([k.position, k.rotation[:, :, 0], k.rotation[:, :, 2]], 1)
        x = (x - self.get_buffer("input_mean")) / self.get_buffer("input_scale")
        links = self.net(x) * self.get_buffer("scale") + self.get_buffer("mean")
        return torch.as_tensor(links).unflatten(1, (LINKS, 3))

    def links(self, k: Kinematics, mirrored: Tensor) -> Tensor:
        """As `forward`, where `mirrored` (B,) bool says that `k` is what a mirror shows, see `Kinematics.mirrored`."""
        if not bool(mirrored.any()):
            return self(k)
        links = self(k.mirrored(mirrored))
        return torch.where(mirrored[:, None, None], links @ ACROSS, links)

    @staticmethod
    def chain(k: Kinematics, links: Tensor) -> Tensor:
        """(B, 4, 3) m: elbow, wrist, last joint and TCP, from `links` (B, 2, 3)."""
        state = k.state()
        joint = k.position - state[:, 6:9] * FLANGE_OFFSET
        return torch.cat([links, joint[:, None], state[:, None, :3]], 1)

    @staticmethod
    def segments(k: Kinematics, links: Tensor) -> tuple[Tensor, Tensor]:
        """The ends (B, 6, 3) and (B, 6, 3) m of the arm's segments, with radii `RADII`, each drawn in map `MAP_OF`."""
        state = k.state()
        tcp, x, z = state[:, :3], state[:, 3:6], state[:, 6:9]
        across = torch.cross(z, x, dim=1)
        half = across * (_HALF_OPENING * (1 - k.gripper).clamp(0, 1))
        palm = k.position + z * (TCP_OFFSET - _PALM)
        points = {
            "elbow": links[:, 0],
            "wrist": links[:, 1],
            "joint": k.position - z * FLANGE_OFFSET,
            "palm": palm,
            "hand_left": palm + across * _HAND,
            "hand_right": palm - across * _HAND,
            "finger_left": palm + half,
            "finger_right": palm - half,
            "tip_left": tcp + half,
            "tip_right": tcp - half,
        }
        starts = torch.stack([points[start] for start, *_ in _SEGMENTS], 1)
        ends = torch.stack([points[end] for _, end, *_ in _SEGMENTS], 1)
        return starts, ends
