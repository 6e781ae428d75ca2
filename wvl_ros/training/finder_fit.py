"""Fits what finds the things, on frames of episodes that say where they were."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from wvl_ros.training.frame_cache import FrameCache
from wvl_ros.world_model import composition
from wvl_ros.world_model.finder import CELL, HALF, HALF_UNIT, HEIGHT, HEIGHT_UNIT, STRIDE, ThingFinder, Told
from wvl_ros.world_model.kinematics import Kinematics
from wvl_ros.world_model.model import WorldModel
from wvl_ros.world_model.rollout import has_bfloat16
from wvl_ros.world_model.things import SIDES, Things

_UPDATES, _BATCH, _RATE = 1500, 24, 2e-3  # twice as many: 0.5 mm instead of 0.9
_FIRST = 0.5  # share of first frames; the others are any
_HERE, _BESIDE = 20.0, 0.3  # weights of places with a thing's middle, and of those beside them, against all others
_AROUND = 0.25  # weight of what these tell of it
_FOUND = 0.02  # m


def fit_finder(
    model: WorldModel, cache: FrameCache, generator: torch.Generator, effort: float = 1.0
) -> dict[str, float]:
    """Trains `model.finder`; `effort` scales the updates.

    Returns:
        Of the first frames of unseen episodes: the share of things that are found, `finder_found`, how wrong they are,
        `finder_mm`, median, and how many more are found than there are, `finder_more` a frame. Nothing where no episode
        says where its things were.
    """
    usable, unseen = cache.tells_things, cache.held_out
    known, held = (usable & ~unseen).nonzero()[:, 0], (usable & unseen).nonzero()[:, 0]
    updates = round(_UPDATES * effort)
    if updates < 1 or not len(known) or not all(model.geometry.known):
        return {}
    finder, patch = model.finder, int(model.config["patch"])
    optimizer = torch.optim.AdamW(finder.parameters(), _RATE, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, max(2, updates))
    for _ in tqdm(range(updates), desc="finder", disable=None):
        episode = known[torch.randint(len(known), (_BATCH,), generator=generator)]
        any_frame = (torch.rand(_BATCH, generator=generator) * cache.frame_count[episode]).long()
        first = torch.rand(_BATCH, generator=generator) < _FIRST
        index = torch.where(first, torch.zeros_like(episode), any_frame)
        images = _shaken(composition.Picture.of(cache.frame(episode, index), patch).images, generator)
        step = cache.step(episode, index)
        with torch.autocast("cpu", torch.bfloat16, enabled=has_bfloat16()):
            told = finder(finder.look(images, Kinematics.unpack(cache.kinematics[step])))
        loss = finding_loss(finder, told, Things.unpack(cache.things_at(episode, step)))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(finder.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return _report(model, cache, held, patch) if len(held) else {}


@torch.no_grad()
def _report(model: WorldModel, cache: FrameCache, episodes: Tensor, patch: int) -> dict[str, float]:
    gaps, more = [], []
    for some in episodes.split(64):
        step = cache.step(some, torch.zeros_like(some))
        images = composition.Picture.of(cache.frame(some, torch.zeros_like(some)), patch).images
        found = model.finder.find(images, Kinematics.unpack(cache.kinematics[step]))
        true = Things.unpack(cache.things_at(some, step))
        apart = (found.place[:, None] - true.place[:, :, None]).norm(dim=3) + 9 * (1 - found.there)[:, None]
        gaps.append(apart.amin(2)[true.there > 0])
        more.append(found.there.sum(1) - true.there.sum(1))
    gap = torch.cat(gaps)
    hit = gap < _FOUND
    result = {
        "finder_found": round(float(hit.float().mean()), 4),
        "finder_more": round(float(torch.cat(more).mean()), 3),
    }
    return result | ({"finder_mm": round(1000 * float(gap[hit].median()), 2)} if bool(hit.any()) else {})


def finding_loss(finder: ThingFinder, told: Told, true: Things) -> Tensor:
    """Cross-entropy of where things are, and smooth L1 of what they are like at the places on and beside them."""
    height, width = told.thing.shape[1:]
    size = CELL * STRIDE
    cell = ((true.place[..., :2] - finder.places[0, 0]) / size + 0.5).floor().long()
    row = torch.arange(len(cell), device=cell.device)[:, None].expand(-1, cell.shape[1])
    target = torch.zeros_like(told.thing)
    inside = _inside(cell, height, width) & (true.there > 0)
    target[row[inside], cell[..., 0][inside], cell[..., 1][inside]] = 1
    beside = F.max_pool2d(target[:, None], 3, 1, 1)[:, 0] > 0
    weight = torch.where(target > 0, _HERE, torch.where(beside, _BESIDE, 1.0))
    each = F.binary_cross_entropy_with_logits(told.thing, target, reduction="none")
    loss = (each * weight).sum() / len(cell) / _HERE
    facts = [(true.place[..., 2] - HEIGHT) / HEIGHT_UNIT, (true.half - HALF) / HALF_UNIT]
    facts += [(4 * true.yaw).cos(), (4 * true.yaw).sin()]
    weights = torch.ones(*true.yaw.shape, 6) * torch.tensor([1.0, 1.0, 0.5, 0.5, 0.3, 0.3])
    weights[..., 4:] *= (true.half > SIDES)[..., None]
    for dx in (-1, 0, 1):
        for dy in (-1, 0, 1):
            near = cell + torch.tensor([dx, dy])
            counts = _inside(near, height, width) & inside
            x, y = near[..., 0].clamp(0, height - 1), near[..., 1].clamp(0, width - 1)
            offset = (true.place[..., :2] - finder.places[x, y]) / size
            goal = torch.cat([offset, torch.stack(facts, 2)], 2)
            wrong = F.smooth_l1_loss(told.like[row, x, y], goal, beta=0.05, reduction="none") * weights
            part = (wrong.sum(2) * counts).sum() / counts.sum().clamp(min=1)
            loss = loss + (1.0 if dx == dy == 0 else _AROUND) * part
    return loss


def _inside(cell: Tensor, height: int, width: int) -> Tensor:
    x, y = cell.unbind(-1)
    return (x >= 0) & (x < height) & (y >= 0) & (y < width)


def _shaken(images: Tensor, generator: torch.Generator) -> Tensor:
    """In other light and colours, and with some noise."""

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    count = len(images)
    some = (torch.rand(count, 1, 1, 1, 1, generator=generator) < 0.5).float()
    images = images * (1 + 0.15 * draw(count, 1, 3, 1, 1) * some) + 0.05 * draw(count, 1, 3, 1, 1)
    images = images + 0.04 * torch.rand(count, 1, 1, 1, 1, generator=generator) * draw(*images.shape)
    order = torch.randperm(3, generator=generator) if torch.rand((), generator=generator) < 0.5 else torch.arange(3)
    return images[:, :, order]
