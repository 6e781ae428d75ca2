"""The things as the first frame shows them, laid where they are now: sharp however far and often they were moved.

Each thing is a box that stands upright. Where a pixel's ray meets one, the same spot of its surface is looked up in the
first frame, in the same view, or, where the wrist did not see it then, in a fixed one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from wvl_ros.world_model.geometry import CameraGeometry
from wvl_ros.world_model.kinematics import Kinematics
from wvl_ros.world_model.patches import VIEWS
from wvl_ros.world_model.things import Things

_SOFT = 0.006  # m that a ray must pass through a thing to see nothing else
_LOWEST = 0.008  # m, half of the height of a thing at least
_STEEP = 1e-6
_WINDOWS = (16, 16, 40)  # pixels around a thing's middle that are looked at, of each view, along a side


def lay_things(
    geometry: CameraGeometry, first: Tensor, first_k: Kinematics, then: Kinematics, start: Things, things: Things
) -> tuple[Tensor, Tensor]:
    """
    Args:
        first: frames (B, V, 3, S, S), taken at `first_k` when the things were as in `start`. then, things: now.

    Returns:
        Pictures (B, V, 3, S, S) of the things, grey elsewhere, and how surely a pixel shows one, (B, V, S, S), 0..1.
    """
    batch, size = len(first), geometry.size
    pictures, masks = torch.zeros_like(first).flatten(3), first.new_zeros(batch, VIEWS, size * size)
    row, slot = (things.there > 0).nonzero(as_tuple=True)  # each thing by itself from here on: (M, ...)
    if not len(row):
        return pictures.view_as(first), masks.view(batch, VIEWS, size, size)
    place, yaw, half = (part[row, slot] for part in things[:3])
    start_place, start_yaw = start.place[row, slot], start.yaw[row, slot]
    upright = torch.minimum(start_place[:, 2], half).clamp(min=_LOWEST)
    box = torch.stack([half, half, upright], 1)[:, None]
    first_k, then = (Kinematics(*(part[row] for part in k)) for k in (first_k, then))
    for view in range(VIEWS):
        if not geometry.known[view]:
            continue
        middle = geometry.places_of(view, place[:, None], then)[0][:, 0]
        pixels = _window(middle, size, min(size, _WINDOWS[view]))  # (M, P)
        eye, ways = geometry.rays(view, then)
        ways = ways.gather(1, pixels[..., None].expand(-1, -1, 3))
        origin, way = _turned((eye - place)[:, None], -yaw), _turned(ways, -yaw)
        way = torch.where(way.abs() < _STEEP, _STEEP, way)
        one, other = (-box - origin) / way, (box - origin) / way
        enters, leaves = torch.minimum(one, other).amax(2), torch.maximum(one, other).amin(2)
        sure = ((leaves - enters) * ways.norm(dim=2) / _SOFT).clamp(0, 1) * (enters > 0)
        flat = row[:, None] * size * size + pixels
        depth = torch.where(sure > 0, enters, torch.inf)
        nearest = depth.new_full((batch * size * size,), torch.inf)
        nearest = nearest.scatter_reduce(0, flat.flatten(), depth.flatten(), "amin")[flat]
        shown = (sure > 0) & (enters == nearest)
        spot = origin + torch.where(shown, enters, 0.0)[..., None] * way
        spot = _turned(spot, start_yaw) + start_place[:, None]
        colours = _look(geometry, view, first[row], spot, first_k)
        rows, there = row[:, None].expand_as(pixels)[shown], pixels[shown]
        pictures[rows, view, :, there] = colours.transpose(1, 2)[shown]
        masks[rows, view, there] = sure[shown]
    return pictures.view_as(first), masks.view(batch, VIEWS, size, size)


def _window(middle: Tensor, size: int, side: int) -> Tensor:
    """Numbers (M, side^2) of the pixels of squares around places (M, 2), -1..1."""
    corner = (((middle + 1) / 2 * size) - side / 2).round().long().clamp(0, size - side)
    steps = torch.arange(side, device=middle.device)
    x, y = corner[:, 0, None] + steps, corner[:, 1, None] + steps
    return (y[:, :, None] * size + x[:, None]).flatten(1)


def _turned(ways: Tensor, angle: Tensor) -> Tensor:
    """Ways (M, P, 3) turned about the vertical by angles (M,)."""
    x, y, z = ways.unbind(2)
    cosine, sine = angle.cos()[:, None], angle.sin()[:, None]
    return torch.stack([cosine * x - sine * y, sine * x + cosine * y, z], 2)


def _look(geometry: CameraGeometry, view: int, pictures: Tensor, spots: Tensor, k: Kinematics) -> Tensor:
    """Colours (M, 3, P) of spots (M, P, 3) in frames (M, V, 3, S, S); what the wrist does not see a fixed view may."""
    colours, inside = _see(geometry, view, pictures, spots, k)
    if view == 2 and not bool(inside.all()):
        for fixed in (1, 0):
            if geometry.known[fixed]:
                colours = torch.where(inside[:, None], colours, _see(geometry, fixed, pictures, spots, k)[0])
    return colours


def _see(geometry: CameraGeometry, view: int, pictures: Tensor, spots: Tensor, k: Kinematics) -> tuple[Tensor, Tensor]:
    place, inside = geometry.places_of(view, spots, k)
    found = F.grid_sample(pictures[:, view], place[:, None], mode="bicubic", align_corners=False, padding_mode="border")
    return found[:, :, 0], inside
