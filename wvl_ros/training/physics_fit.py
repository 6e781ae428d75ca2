"""Fits how things and the hand move in a control step, on episodes that say where things were.

A step is learned from where the network's own steps before it have led, and from things that are seen a little beside
where they are: by steps from the truth alone it is more exact in each, and further off at the end of an episode.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from wvl_ros.training.frame_cache import FrameCache
from wvl_ros.training.things import JUMP
from wvl_ros.world_model.kinematics import GRIPPER, Kinematics
from wvl_ros.world_model.model import WorldModel
from wvl_ros.world_model.physics import Physics, see
from wvl_ros.world_model.things import SIDES, Things, turn_between

_UPDATES, _BATCH, _RATE = 9_000, 256, 3e-3
_REPORTED = (1, 8)  # control steps over its own results
_SHARES = {"moving": 0.7, "gripping": 0.15, "other": 0.15}  # of the rows
_STIRRED = 0.001  # m in a control step: what moved less stands still
_CLOSED = 0.02  # of the gripper's position in a control step
_NOISE, _TURNED = 0.0025, 0.04  # m and rad, on half of the batches: things are seen no better
_OWN = 8  # steps of its own before the one that is learned, at most
_NEAR, _LOST = 0.006, 0.015  # m beside the truth: from further off it is not to come back, and is not learned from
_FEW, _LITTLE, _SOME = 0.01, 0.1, 0.1  # errors that count as 1: m, rad, of the gripper's position
_STILL = 0.2  # how much a thing counts that does not move
_ASKED = 2000  # rows of the report


def fit_physics(
    model: WorldModel, cache: FrameCache, generator: torch.Generator, effort: float = 1.0
) -> dict[str, float]:
    """Trains `model.physics`; `effort` scales the updates.

    Returns:
        How wrong it is on unseen episodes, in mm, of things that move: `physics_N_mm` after N control steps, median.
        Nothing where no episode says where its things were.
    """
    unseen, updates = cache.held_out, round(_UPDATES * effort)
    known = [(rows[~unseen[rows[:, 0]]], share) for rows, share in _pools(cache, 1)]
    known = [(rows, share) for rows, share in known if len(rows)]
    if updates < 1 or not known:
        return {}
    _set_scale(model, cache, known[0][0], generator)
    whole = sum(share for _, share in known)
    optimizer = torch.optim.AdamW(model.physics.parameters(), _RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, max(2, updates))
    for update in tqdm(range(updates), desc="physics", disable=None):
        parts = [
            rows[torch.randint(len(rows), (max(1, round(share / whole * _BATCH)),), generator=generator)]
            for rows, share in known
        ]
        own = int(torch.randint(_OWN + 1, (), generator=generator))
        loss = _loss(model, cache, torch.cat(parts), own, generator if update % 2 else None)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.physics.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    found = {}
    for unroll in _REPORTED:
        rows = _pools(cache, unroll)[0][0]
        rows = rows[unseen[rows[:, 0]]]
        if len(rows):
            rows = rows[:: max(1, len(rows) // _ASKED)]
            apart = torch.cat([_apart(model, cache, some, unroll) for some in rows.split(256)])
            found[f"physics_{unroll}_mm"] = round(1000 * float(apart.median()), 2)
    return found


def _pools(cache: FrameCache, unroll: int) -> list[tuple[Tensor, float]]:
    """Episodes and steps (N, 2), after which in `unroll` steps a known thing moves; or the gripper; or neither; and the
    share of each.
    """
    places = cache.things.unflatten(1, (-1, 5))
    gap = (places[1:, :, :3] - places[:-1, :, :3]).norm(dim=2)
    moves = F.pad(((gap > _STIRRED) & (gap < JUMP)).any(1).float(), (0, 1))
    grips = F.pad((cache.kinematics[1:, GRIPPER] - cache.kinematics[:-1, GRIPPER]).abs() > _CLOSED, (0, 1)).float()
    sums = [F.pad(of.cumsum(0), (1, 0)) for of in (moves, grips)]
    steps = ((cache.step_count - unroll).clamp(min=0) * cache.tells_things).long()
    episode = torch.repeat_interleave(torch.arange(len(cache)), steps)
    first = steps.cumsum(0) - steps
    step = cache.step_start[episode] + torch.arange(len(episode)) - first[episode]
    moving, gripping = (of[step + unroll] - of[step] > 0 for of in sums)
    kinds = {"moving": moving, "gripping": gripping & ~moving, "other": ~moving & ~gripping}
    rows = torch.stack([episode, step], 1)
    return [(rows[kinds[name]], share) for name, share in _SHARES.items()]


def _set_scale(model: WorldModel, cache: FrameCache, rows: Tensor, generator: torch.Generator) -> None:
    """Has the network see facts of about unit size."""
    rows = rows[torch.randint(len(rows), (20_000,), generator=generator)]
    with torch.no_grad():
        things, now = Things.unpack(cache.things_at(*rows.unbind(1))), Kinematics.unpack(cache.kinematics[rows[:, 1]])
        then = model.tracking(now, cache.actions[rows[:, 1]], cache.calibrated[rows[:, 0]])
        facts = see(now, then, things).facts[_near(then, things)]
    physics = model.physics
    physics.get_buffer("mean").copy_(facts.mean(0))
    physics.get_buffer("deviation").copy_(facts.std(0) + 1e-2)


def _near(then: Kinematics, things: Things) -> Tensor:
    return (things.there > 0) & ((things.place - then.state()[:, None, :3]).norm(dim=2) < Physics.REACH)


@torch.no_grad()
def _play(model: WorldModel, cache: FrameCache, rows: Tensor, steps: Tensor) -> tuple[Things, Kinematics]:
    """Things and arms after so many steps (B,) of the network's own from `rows` (B, 2), by the recorded actions."""
    episode, step = rows.unbind(1)
    packed, arm = cache.things_at(episode, step), cache.kinematics[step]
    for i in range(int(steps.max())):
        live = i < steps
        actions = cache.actions[torch.where(live, step + i, step)][:, None]
        k, _, moved = model.play(arm, packed, actions, cache.calibrated[episode])
        packed = torch.where(live[:, None], moved, packed)
        arm = torch.where(live[:, None], k.pack(), arm)
    return Things.unpack(packed), Kinematics.unpack(arm)


def _apart(model: WorldModel, cache: FrameCache, rows: Tensor, unroll: int) -> Tensor:
    """How far (N,) in m from the truth those things end that have moved in so many steps from `rows` (B, 2)."""
    episode, step = rows.unbind(1)
    things, _ = _play(model, cache, rows, torch.full_like(step, unroll))
    start, true = (Things.unpack(cache.things_at(episode, s)) for s in (step, step + unroll))
    way = (true.place - start.place).norm(dim=2)
    return (things.place - true.place).norm(dim=2)[(way > _STIRRED) & (way < unroll * JUMP) & (start.there > 0)]


def _loss(model: WorldModel, cache: FrameCache, rows: Tensor, own: int, noise: torch.Generator | None = None) -> Tensor:
    """Of one step from `rows` (B, 2), after up to so many of the network's own steps before them."""
    episode, step = rows.unbind(1)
    before = torch.minimum(torch.full_like(step, own), step - cache.step_start[episode])
    things, k = _play(model, cache, torch.stack([episode, step - before], 1), before)
    start, true = (Things.unpack(cache.things_at(episode, s)) for s in (step, step + 1))
    if noise is not None:
        shift = _NOISE * torch.randn(start.place.shape, generator=noise) * torch.tensor([1.0, 1.0, 0.3])
        turn = _TURNED * torch.randn(start.yaw.shape, generator=noise)
        things = things._replace(place=things.place + shift, yaw=things.yaw + turn)
    with torch.no_grad():
        then = model.tracking(k, cache.actions[step], cache.calibrated[episode])
    after, k = model.physics(k, then, things)
    way, astray = true.place - start.place, (things.place - start.place).norm(dim=2)
    sane = (start.there > 0) & (way.norm(dim=2) < JUMP) & (astray < _LOST)
    weight = sane * torch.where(way.norm(dim=2) > _STIRRED, 1.0, _STILL)
    goal = torch.where((astray < _NEAR)[..., None], true.place, things.place + way)
    each = _error((after.place - goal) / _FEW).sum(2)
    turned = turn_between(after.yaw, true.yaw) / _LITTLE * (start.half > SIDES)
    true_k = Kinematics.unpack(cache.kinematics[step + 1])
    hand = _error((k.position - true_k.position) / _FEW).sum(1)
    grip = _error((k.gripper - true_k.gripper) / _SOME, 0.1)
    return ((each + 0.3 * _error(turned)) * weight).sum() / weight.sum().clamp(min=1) + hand.mean() + grip.mean()


def _error(of: Tensor, fine: float = 0.2) -> Tensor:
    return F.smooth_l1_loss(of, torch.zeros_like(of), beta=fine, reduction="none")
