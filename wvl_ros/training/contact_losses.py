"""How wrong it is what the hand is said to touch and how that moves: by what is known of things, or by pictures."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from wvl_ros.training.contact_moments import STIRRED, Moments, reachable
from wvl_ros.training.things import Things, turn_between
from wvl_ros.world_model import composition
from wvl_ros.world_model.contact import CELL, MIDDLE, Contact, Footprint
from wvl_ros.world_model.kinematics import Kinematics
from wvl_ros.world_model.model import WorldModel
from wvl_ros.world_model.patches import VIEWS

_SPREAD = 0.1  # standard deviation of a colour that is explained, of -1..1
_ELSE = 0.05  # share of places with another cause, of any colour
_EXPLAIN = 0.2  # weight of the pictures beside the gripper's position
_COVERED = 3.0  # how much more a place counts that is covered by what moves: they are few
_MOTION, _TURNED, _MASK = 0.5, 0.1, 4.0  # weights of what is known of things, in units of
_FEW, _LITTLE = 0.01, 0.1  # m and rad


def movement_loss(model: WorldModel, moments: Moments, told: Contact) -> Tensor:
    """How wrong the motion and the mask are: by what is known of the things, or by the pictures; a scalar."""
    known = ~moments.things[:, 0].isnan()
    rest = _EXPLAIN * (_unexplained(model, moments, told) * ~known).mean()
    if not bool(known.any()):
        return rest
    parts = misplaced(model, moments, told)
    return rest + sum(
        weight * (parts[name] * known).mean()
        for name, weight in (("motion", _MOTION), ("turn", _TURNED), ("mask", _MASK))
    )


def misplaced(model: WorldModel, moments: Moments, told: Contact) -> dict[str, Tensor]:
    """Of each moment (B,): `motion`, how far from where they were it says that the things came from which move, or the
    nearest one where none does; `turn`; `mask`, of all that move. And for the report, in m, `way`, how far the thing
    moves that moves most, and `apart`, how far from where it was it is said to come.
    """
    before, after = (Things.unpack(rows.nan_to_num()) for rows in (moments.things, moments.next_things))
    below = told.below
    near = reachable(below, before, after) & ~Things.unpack(moments.things).height.isnan()
    gap = (after.place - before.place).norm(dim=2)
    moved = near & (gap > STIRRED)
    distance = (after.place - below.center[:, None]).norm(dim=2).masked_fill(~near, torch.inf)
    nearest = near & (distance == distance.amin(1, keepdim=True))
    counts = torch.where(moved.any(1, keepdim=True), moved, nearest).float()
    counts = counts / counts.sum(1, keepdim=True).clamp(min=1)
    away = told.before(after.place) - before.place
    motion = F.smooth_l1_loss(away / _FEW, torch.zeros_like(away), reduction="none").sum(2)
    turned = turn_between(before.yaw, after.yaw)
    turn = F.smooth_l1_loss((told.motion[:, 2:] - turned) / _LITTLE, torch.zeros_like(turned), reduction="none") * (
        moved.sum(1, keepdim=True) == 1
    )  # many are balls, which have no sides
    most = (gap * moved).argmax(1, keepdim=True)
    covered = _covered(model, below, after, moved)
    mask = F.binary_cross_entropy_with_logits(
        told.mask.flatten(1), covered, reduction="none", pos_weight=covered.new_tensor(_COVERED)
    )
    return {
        "motion": (motion * counts).sum(1),
        "turn": (turn * counts * moved).sum(1),
        "mask": mask.mean(1),
        "apart": away.norm(dim=2).gather(1, most)[:, 0],
        "way": gap.gather(1, most)[:, 0],
    }


def _covered(model: WorldModel, below: Footprint, things: Things, which: Tensor) -> Tensor:
    """(B, CELLS^2), 1 where one of the things marked in `which` (B, 8) covers the table, else 0."""
    cells = model.contact.get_buffer("cells")
    spots = below.spots(cells.expand(len(which), -1, -1))[:, None] - things.place[:, :, None]
    cosine, sine = things.yaw.cos()[..., None], things.yaw.sin()[..., None]
    sides = (cosine * spots[..., 0] + sine * spots[..., 1], cosine * spots[..., 1] - sine * spots[..., 0])
    covered = torch.maximum(sides[0].abs(), sides[1].abs()) < things.half[..., None] + CELL / 2
    return (covered & which[..., None]).any(1).float()


def _unexplained(model: WorldModel, moments: Moments, told: Contact) -> Tensor:
    """Negative log-likelihood (B,) of the next pictures around the fingertips, mean over their places."""
    contact, patch_size = model.contact, int(model.config["patch"])
    last, after = (composition.images(composition.views(frame), patch_size) for frame in (moments.last, moments.next))
    now, next_k = Kinematics.unpack(moments.kinematics), Kinematics.unpack(moments.next_kinematics)
    spots = told.below.spots(contact.get_buffer("cells").expand(len(last), -1, -1))
    here, before = (F.pad(some, (0, 1), value=MIDDLE) for some in (spots, told.before(spots)))
    mask = told.mask.flatten(1)
    other = torch.full_like(mask, math.log(_ELSE / 8))  # colours lie in a cube of volume 8
    likelihood = torch.zeros(len(last))
    for view in range(VIEWS):
        true, seen_then = contact.look(view, here, after[:, view], next_k)
        still, seen_now = contact.look(view, here, last[:, view], now)
        moved, _ = contact.look(view, before, last[:, view], now)
        causes = [F.logsigmoid(mask) + _density(moved, true), F.logsigmoid(-mask) + _density(still, true), other]
        known = seen_then & seen_now & (moments.calibrated != 0)[:, None]
        likelihood = likelihood + (torch.logsumexp(torch.stack(causes), 0) * known).mean(1)
    return -likelihood / VIEWS


def _density(found: Tensor, true: Tensor) -> Tensor:
    """Log-density (B, N) of colours (B, 3, N) around those found."""
    return -(found - true).square().sum(1) / (2 * _SPREAD**2) - 3 * math.log(_SPREAD * math.sqrt(2 * math.pi))
