"""What the hand touches: what the gripper closes on, and how it moves what it pushes or holds.

Seen from the hand: the pictures are looked up on the table around the fingertips, so that an object between the fingers
looks the same wherever on the table it lies, and in whichever camera. A gripper stops where it meets something, or
closes on nothing. What is likely lies at one of two ends, and the mean between them is never true; so its next position
is told as probabilities of places between open and closed, and the likeliest place is taken. What is touched moves as a
whole, so one motion along the table is told for all of it. Once these are decided, the pictures follow from them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wvl_ros.world_model.blocks import zero
from wvl_ros.world_model.geometry import HALF_OPENING, CameraGeometry
from wvl_ros.world_model.kinematics import STATE_DIM, STATE_SCALE, Kinematics
from wvl_ros.world_model.patches import VIEWS

BINS = 26  # of the gripper's position, from open (0) to closed (1)
CELLS, CELL = 24, 0.006  # places looked up around the fingertips, along a side, and m between them
MIDDLE = 0.02  # m above the table: the middle of a usual object
_NEAR = 2  # bins beside the likeliest one that the position is averaged over
_FARTHEST, _TURN = 0.03, 0.4  # of what is touched, in a frame: m apart from the hand's own way, and rad
_BELOW_TIPS = 0.005  # m below the tool's centre: the middle of what the fingers hold
_FINGER = 0.012  # m, of a fingertip's mark
_RARE = -2.0  # logit of a place to be touched that a fresh network starts from
_NARROW, _WIDE, _DEEP, _HIDDEN = 32, 48, 64, 128
_LOOKS = 3 * (2 * (VIEWS - 1) + 1 + VIEWS)  # colours: last frame at two heights (the wrist's at one), first at one
_SEEN = _LOOKS + 2 + 4  # which of the wrist's are known; fingertips, where the hand comes from, its height


class Footprint(NamedTuple):
    """The table below B hands: `center` (B, 2) m, its axes `opening` (the fingers') and `across` (B, 2), and how high
    the fingertips are above it, `height` (B,) m.
    """

    center: Tensor
    opening: Tensor
    across: Tensor
    height: Tensor

    @classmethod
    def of(cls, k: Kinematics) -> Footprint:
        """Below the hands of `k`."""
        state = k.state()
        tcp, x, z = state[:, :3], state[:, 3:6], state[:, 6:9]
        opening = F.normalize(torch.cross(z, x, dim=1)[:, :2], dim=1)
        return cls(tcp[:, :2], opening, torch.stack([-opening[:, 1], opening[:, 0]], 1), tcp[:, 2])

    def local(self, spots: Tensor) -> Tensor:
        """Spots (B, N, 2) m of the base as seen from the hand, in m."""
        gap = spots - self.center[:, None]
        return torch.stack([(gap * way[:, None]).sum(2) for way in (self.opening, self.across)], 2)

    def spots(self, local: Tensor) -> Tensor:
        """The inverse of `local`."""
        return self.center[:, None] + local[..., :1] * self.opening[:, None] + local[..., 1:] * self.across[:, None]


class Contact(NamedTuple):
    """Of B hands: `grip` (B, 26) logits of the gripper's next position; `motion` (B, 3) of what is touched: along and
    across the fingers' opening in m, and its turn in rad around `about` (B, 2) m; `mask` (B, CELLS, CELLS) logits of
    where it is after that. All of it as seen from the hand after the motion, at `below`.
    """

    grip: Tensor
    motion: Tensor
    mask: Tensor
    about: Tensor
    below: Footprint

    def before(self, spots: Tensor) -> Tensor:
        """Where what is at `spots` (B, N, 2) m of the base after the motion was before it."""
        below, cosine, sine = self.below, self.motion[:, 2].cos(), self.motion[:, 2].sin()
        back = torch.stack([cosine, -sine, sine, cosine], 1).view(-1, 2, 2)  # the turn undone, of rows
        way = self.motion[:, :1] * below.opening + self.motion[:, 1:2] * below.across
        middle = below.spots(self.about[:, None])
        return (spots - middle - way[:, None]) @ back + middle


class ContactNetwork(nn.Module):
    """Tells a `Contact`.

    Args:
        geometry: of the cameras; not a part of this module. view_channels: channels of a view as patches.
        grid: patches along a side. actions: control steps a frame.
    """

    def __init__(self, geometry: CameraGeometry, view_channels: int, grid: int, actions: int) -> None:
        super().__init__()
        self._geometry = [geometry]
        self.look_1 = nn.Conv2d(_SEEN, _NARROW, 3, padding=1)
        self.look_2 = nn.Conv2d(_NARROW, _WIDE, 3, 2, 1)
        self.look_3 = nn.Conv2d(_WIDE, _DEEP, 3, 2, 1)
        self.place = nn.Linear(_DEEP * (CELLS // 4) ** 2, _HIDDEN)
        # What the wrist sees is seen from the hand without any calibration.
        self.wrist_1 = nn.Conv2d(view_channels, _NARROW, 1)
        self.wrist_2 = nn.Conv2d(_NARROW, _NARROW, 3, 2, 1)
        self.wrist = nn.Linear(_NARROW * (grid // 2) ** 2, _HIDDEN)
        self.known = nn.Linear(2 * STATE_DIM + 4 + actions + BINS, _HIDDEN)
        self.think = nn.Sequential(nn.SiLU(), nn.Linear(_HIDDEN, _HIDDEN), nn.SiLU())
        self.grip = nn.Linear(_HIDDEN, BINS)
        self.motion = nn.Linear(_HIDDEN, 4)
        self.film = nn.Linear(_HIDDEN, 2 * _NARROW)
        self.deep = nn.Conv2d(_WIDE, _NARROW, 1)
        self.mask_1 = nn.Conv2d(_NARROW, _NARROW, 3, padding=1)
        self.mask_2 = nn.Conv2d(_NARROW, 1, 3, padding=1)
        zero(self.motion)
        zero(self.mask_2)
        assert self.mask_2.bias is not None
        nn.init.constant_(self.mask_2.bias, _RARE)
        self.register_buffer("scale", torch.tensor(STATE_SCALE), persistent=False)
        self.register_buffer("cells", _cells(), persistent=False)

    def forward(
        self,
        last: Tensor,
        first: Tensor,
        first_k: Kinematics,
        now: Kinematics,
        then: Kinematics,
        commands: Tensor,
        wrist: Tensor,
        calibrated: Tensor,
    ) -> Contact:
        """
        Args:
            last, first: frames (B, V, 3, S, S). first_k, now, then: of the first frame, of the last one, and of the
                next one as the servo alone would have it. commands: (B, K) gripper's.
            wrist: (B, G, G, K) the last frame's wrist view as patches. calibrated: (B,), 0 where the cameras are not.
        """
        known_cameras = (calibrated != 0)[:, None]
        with torch.no_grad():
            below = Footprint.of(then)
            seen = self._see(below, last, first, first_k, now) * known_cameras[..., None, None]
        near = F.silu(self.look_1(seen))
        wide = F.silu(self.look_2(near))
        deep = F.silu(self.look_3(wide))
        at_hand = F.silu(self.wrist_2(F.silu(self.wrist_1(wrist.permute(0, 3, 1, 2)))))
        state, after = now.state(), then.state()
        way = -below.local(now.state()[:, None, :2])[:, 0]  # the hand's, to where it will be
        facts = [state, (after - state) / self.get_buffer("scale"), way / _FARTHEST]
        facts += [now.gripper_velocity * 10, now.gripper_command, commands, spread(now.gripper)]
        hidden = self.place(deep.flatten(1)) + self.wrist(at_hand.flatten(1)) + self.known(torch.cat(facts, 1))
        hidden = self.think(hidden)
        moves = self.motion(hidden).float()
        along = torch.sigmoid(moves[:, :1]) * way + torch.tanh(moves[:, 1:3]) * _FARTHEST
        motion = torch.cat([along, torch.tanh(moves[:, 3:]) * _TURN], 1) * known_cameras
        scale, shift = self.film(hidden)[:, :, None, None].chunk(2, 1)
        marks = near + F.interpolate(self.deep(wide), scale_factor=2.0, mode="nearest")
        marks = F.silu(self.mask_1(F.silu(marks * (1 + scale) + shift)))
        mask = self.mask_2(marks)[:, 0].float()
        return Contact(self.grip(hidden).float(), motion, mask, _middle(mask, self.get_buffer("cells")), below)

    def look(self, view: int, points: Tensor, images: Tensor, k: Kinematics) -> tuple[Tensor, Tensor]:
        """Colours (B, 3, N) at points (B, N, 3) m of a view's images (B, 3, S, S), taken at `k`; and (B, N) bool,
        whether these show them.
        """
        place, inside = self._geometry[0].places_of(view, points, k)
        colours = F.grid_sample(images, place[:, None], align_corners=False, padding_mode="border")[:, :, 0]
        return colours, inside

    def _see(self, below: Footprint, last: Tensor, first: Tensor, first_k: Kinematics, now: Kinematics) -> Tensor:
        """(B, _SEEN, CELLS, CELLS): the pictures around the fingertips, and where these are."""
        local = self.get_buffer("cells").expand(len(last), -1, -1)
        spots, low = below.spots(local), torch.full_like(below.height, MIDDLE)
        tips = (below.height - _BELOW_TIPS).clamp(min=MIDDLE)
        parts = []
        for frame, k, heights in ((last, now, (low, tips)), (first, first_k, (low,))):
            for height in heights:
                points = torch.cat([spots, height[:, None, None].expand(-1, spots.shape[1], 1)], 2)
                for view in range(VIEWS):
                    if view < 2:
                        parts.append(self.look(view, points, frame[:, view], k)[0])
                    elif height is low:
                        colours, inside = self.look(view, points, frame[:, view], k)
                        parts += [colours, inside[:, None].float()]
        half = HALF_OPENING * (1 - now.gripper).clamp(0, 1)
        nowhere = torch.zeros_like(half)
        came = below.local(now.state()[:, None, :2])
        for spot in (torch.stack([half, nowhere], 2), torch.stack([-half, nowhere], 2), came):
            parts.append(torch.exp(-0.5 * ((local - spot) / _FINGER).square().sum(2))[:, None])
        parts.append(torch.tanh((below.height - MIDDLE) / 0.03)[:, None, None].expand(-1, 1, CELLS * CELLS))
        return torch.cat(parts, 1).unflatten(2, (CELLS, CELLS))


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


def _cells() -> Tensor:
    """(CELLS^2, 2) m: places around the fingertips as seen from the hand, rows along `across`."""
    axis = (torch.arange(CELLS) - (CELLS - 1) / 2) * CELL
    across, opening = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack([opening, across], 2).reshape(-1, 2)


def _middle(mask: Tensor, cells: Tensor) -> Tensor:
    """(B, 2) m: the middle of what a mask (B, CELLS, CELLS) of logits marks."""
    weight = mask.detach().flatten(1).sigmoid() + 1e-4
    return (weight @ cells) / weight.sum(1, keepdim=True)
