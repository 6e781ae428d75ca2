"""The next frame as a mixture of copies and new values, and where the copies come from.

Each pixel is mixed of six: a new value, the last frame moved, the last frame, the first one, the last one moved
rigidly, and the things of the first frame laid where they are now (`thing_copies`). Moved means: in the fixed views as
the nearest part of the arm moves (so that what the hand holds comes along sharply), in the wrist view as the table
would seem to move; in both, the network adds its own correction. Rigidly means without one, and in the wrist view as
what stands on the table would seem to move. What need not be drawn anew does not drift.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from wvl_ros.world_model.geometry import CameraGeometry
from wvl_ros.world_model.kinematics import Kinematics
from wvl_ros.world_model.patches import VIEWS

CHOICES = 6  # new, moved, last, first, rigid, laid
_SURE = 6.0  # how much the mask of the things adds to the choice of their copy
STANDING = 0.04  # m above the table: the upper side of a usual object
REACH = 0.125  # of the image: the longest correction of a motion, 8 of 64 pixels


class Picture(NamedTuple):
    """A frame in both forms: `views` (B, V, G, G, K) and `images` (B, V, 3, S, S)."""

    views: Tensor
    images: Tensor

    @classmethod
    def of(cls, frame: Tensor, patch: int) -> Picture:
        """Of frames (B, C, G, G)."""
        parts = views(frame)
        return cls(parts, images(parts, patch))

    def select(self, rows: Tensor) -> Picture:
        """Of some of the rollouts (n,)."""
        return Picture(self.views[rows], self.images[rows])


class Copies(NamedTuple):
    """What a next frame can be copied from; but for `last`, all as views (B, V, G, G, K) with K = 3 patch^2 channels.

    `first` is warped in the wrist view. `rigid` is `moved` in the fixed views; in the wrist view, the last frame as if
    all stood `STANDING` above the table. `around` is for the wrist view the table as the fixed cameras first saw it,
    for these nothing. `place` (B, V, S, S, 2) is where each pixel of `moved` was in the last frame,
    -1..1; `inside` (B, V, S, S) whether the last frame shows it.
    """

    last: Picture
    moved: Tensor
    first: Tensor
    rigid: Tensor
    around: Tensor
    place: Tensor
    inside: Tensor
    laid: Tensor
    mask: Tensor


def copies(
    geometry: CameraGeometry,
    last: Picture,
    first: Picture,
    first_k: Kinematics,
    now: Kinematics,
    then: Kinematics,
    arms: tuple[Tensor, Tensor],
    laid: tuple[Tensor, Tensor],
    calibrated: Tensor,
    patch: int,
) -> Copies:
    """The copies for frames `last` and `first`.

    `arms`: (B, 4, 3) m now and then, see `Posture.chain`. `laid`: see `lay_things`. `calibrated` (B,): 0 leaves all
    where it is.
    """
    batch = len(last.views)
    known = calibrated[:, None, None, None] != 0
    still = geometry.still(batch)
    arm = [torch.where(known, geometry.places_of_arm(view, *arms), still) for view in (0, 1)]
    table, inside_last = geometry.places(now, then)
    table_first, inside_first = geometry.places(first_k, then)
    table, table_first = torch.where(known, table, still), torch.where(known, table_first, still)
    moved = sample(last.images[:, 2], table, sharp=True)
    warped = sample(first.images[:, 2], table_first)
    around = _around(geometry, first.images, then) * known
    # What one of the two had not in view is taken from the other, then from the fixed cameras; what none had is grey.
    from_last, from_first = (inside[:, None] | ~known for inside in (inside_last, inside_first))
    filled = torch.where(from_last, moved, torch.where(from_first, warped, around))
    filled_first = torch.where(from_first, warped, torch.where(from_last, moved, around))
    standing = _standing(geometry, last, first, first_k, now, then, filled, known)
    moved_images = torch.stack([sample(last.images[:, v], arm[v], sharp=True) for v in (0, 1)] + [filled], 1)
    all_inside = torch.ones_like(from_last[:, 0])
    nothing = torch.zeros_like(last.views[:, :2])
    all_moved = unimages(moved_images, patch)
    things = torch.where(known[..., None], laid[0], last.images)
    return Copies(
        last=last,
        moved=all_moved,
        first=torch.cat([first.views[:, :2], unimages(filled_first[:, None], patch)], 1),
        rigid=torch.cat([all_moved[:, :2], unimages(standing[:, None], patch)], 1),
        around=torch.cat([nothing, unimages(around[:, None], patch)], 1),
        place=torch.stack([*arm, table], 1),
        inside=torch.stack([all_inside, all_inside, from_last[:, 0]], 1),
        laid=unimages(things, patch),
        mask=_unmask(laid[1], patch),
    )


def _standing(
    geometry: CameraGeometry,
    last: Picture,
    first: Picture,
    first_k: Kinematics,
    now: Kinematics,
    then: Kinematics,
    rest: Tensor,
    known: Tensor,
) -> Tensor:
    """(B, 3, S, S): the wrist view as if all stood `STANDING` above the table; what neither frame shows is `rest`'s."""
    result = rest
    for frame, k in ((first, first_k), (last, now)):  # what both show is taken from the last
        place, inside = geometry.places(k, then, STANDING)
        seen = sample(frame.images[:, 2], place, sharp=frame is last)
        result = torch.where(inside[:, None] & known, seen, result)
    return result


def _around(geometry: CameraGeometry, first_images: Tensor, then: Kinematics) -> Tensor:
    """(B, 3, S, S): the table below the wrist camera, as the first frames of the fixed cameras show it."""
    result = torch.zeros_like(first_images[:, 0])
    for view in (1, 0):  # what both see is taken from the first
        place, inside = geometry.places_in(view, then)
        result = torch.where(inside[:, None], sample(first_images[:, view], place), result)
    return result


def _unmask(mask: Tensor, patch: int) -> Tensor:
    """Masks (B, V, S, S) as views (B, V, G, G, patch^2)."""
    batch, count, size, _ = mask.shape
    grid = size // patch
    split = mask.reshape(batch, count, grid, patch, grid, patch).permute(0, 1, 2, 4, 3, 5)
    return split.reshape(batch, count, grid, grid, patch * patch)


def compose(given: Copies, change: Tensor, choice: Tensor, correction: Tensor, patch: int) -> Tensor:
    """The next frame as views (B, V, G, G, K).

    Args:
        change: (B, V, G, G, K) what new values add to the last frame. choice: (B, V, G, G, 6 patch^2) logits.
        correction: (B, V, G, G, 2) of where the moved patches were, in units of `REACH`. One a patch, and between
            patches in between: what moves keeps its shape, where each pixel by itself would scatter it.
    """
    batch, _, grid = given.last.views.shape[:3]
    n = patch * patch
    size = grid * patch
    offset = torch.tanh(correction).flatten(0, 1).permute(0, 3, 1, 2)
    offset = F.interpolate(offset, size=(size, size), mode="bilinear", align_corners=False)
    place = given.place + 2 * REACH * offset.permute(0, 2, 3, 1).unflatten(0, (batch, VIEWS))
    source = given.last.images.flatten(0, 1)
    moved = unimages(sample(source, place.flatten(0, 1), sharp=True).unflatten(0, (batch, VIEWS)), patch)
    inside = given.inside.reshape(batch, VIEWS, grid, patch, grid, patch).permute(0, 1, 2, 4, 3, 5)
    inside = inside.reshape(batch, VIEWS, grid, grid, 1, n)

    def split(x: Tensor) -> Tensor:
        return x.unflatten(4, (3, n))

    choice = choice.unflatten(4, (CHOICES, n))
    weights = (choice + _SURE * F.pad(given.mask[..., None, :], (0, 0, CHOICES - 1, 0))).softmax(4)
    old = split(given.last.views)
    moved = torch.where(inside, split(moved), split(given.moved))
    new = old + split(change)
    mixed = weights[..., 0:1, :] * new
    for i, part in enumerate((moved, old, split(given.first), split(given.rigid), split(given.laid)), 1):
        mixed = torch.addcmul(mixed, weights[..., i : i + 1, :], part)
    return mixed.flatten(4)


def views(frames: Tensor) -> Tensor:
    """Frames (B, V K, G, G) as views (B, V, G, G, K) float32."""
    return frames.float().unflatten(1, (VIEWS, -1)).permute(0, 1, 3, 4, 2).contiguous()


def frame(parts: Tensor) -> Tensor:
    """The inverse of `views`; channels last in memory."""
    return parts.permute(0, 1, 4, 2, 3).flatten(1, 2).contiguous(memory_format=torch.channels_last)


def images(parts: Tensor, patch: int) -> Tensor:
    """Views (B, V, G, G, 3 patch^2) as images (B, V, 3, S, S)."""
    batch, count, grid = parts.shape[:3]
    split = parts.reshape(batch, count, grid, grid, 3, patch, patch).permute(0, 1, 4, 2, 5, 3, 6)
    return split.reshape(batch, count, 3, grid * patch, grid * patch)


def unimages(pictures: Tensor, patch: int) -> Tensor:
    """The inverse of `images`."""
    batch, count, _, size, _ = pictures.shape
    grid = size // patch
    split = pictures.reshape(batch, count, 3, grid, patch, grid, patch).permute(0, 1, 3, 5, 2, 4, 6)
    return split.reshape(batch, count, grid, grid, 3 * patch * patch)


def sample(pictures: Tensor, place: Tensor, sharp: bool = False) -> Tensor:
    """Images (N, 3, S, S) looked up at `place` (N, S, S, 2) in -1..1, between pixels linearly or, `sharp`, cubically.

    What is looked up again and again, frame after frame, must be sharp: linearly, a cube of 6 pixels loses a third of
    its contrast in 20 frames, cubically nothing.
    """
    mode = "bicubic" if sharp else "bilinear"
    return F.grid_sample(pictures, place, mode=mode, align_corners=False, padding_mode="border")
