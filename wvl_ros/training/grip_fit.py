"""Fits what the gripper closes on: on true frames before the network is trained, and once more at its end on those that
it draws itself.

The few frames in which a gripper closes decide most manipulation; a run that meets them once in twenty frames learns
them slowly. This part is small and needs nothing of the network, so it sees them thousands of times first. Imagined
frames look otherwise; of the grasps in them it told fewer as nothing after it had seen such (31 -> 26 % of 110).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from wvl_ros.training.frame_cache import FrameCache
from wvl_ros.world_model import composition
from wvl_ros.world_model.grip import likeliest, spread
from wvl_ros.world_model.kinematics import GRIPPER, Kinematics
from wvl_ros.world_model.model import WorldModel
from wvl_ros.world_model.rollout import has_bfloat16

_BATCH, _RATE = 64, 1e-3
_CLOSING = 0.6  # share of frames in which the gripper has been told to close and has not stopped yet
_HELD_OUT = 10  # every so many an episode is left for the report
_NOISE = 0.06  # on the pictures of half of them: imagined ones are not as clean
_AGREES = 0.1  # how near the told position must be to the true one
_ROLLOUTS = 48  # imagined at a time
_SOME = 0.1  # share of the frames without a closing that are learned from in a rollout


class Closings(NamedTuple):
    """Frames after which the gripper's next position is told: `last` (N, C, G, G), `kinematics` (N, 39) packed,
    `actions` (N, K, 7), `calibrated` (N,), the `true` position (N, 1), and `closing` (N,) bool, whether it closes then.
    """

    last: Tensor
    kinematics: Tensor
    actions: Tensor
    calibrated: Tensor
    true: Tensor
    closing: Tensor

    def select(self, rows: Tensor) -> Closings:
        """Some of them, the frames as float32."""
        return Closings(self.last[rows].float(), *(part[rows] for part in self[1:]))


def fit_grip(
    model: WorldModel, cache: FrameCache, generator: torch.Generator, updates: int, own: Closings | None = None
) -> dict[str, float]:
    """Trains `model.grip`, with `own` half of it on these.

    Returns:
        The share of unseen closing frames whose position is told rightly, and of all frames; true ones.
    """
    closing, others = _frames(cache)
    unseen = _unseen(cache)
    held = [unseen[rows[:, 0]] for rows in (closing, others)]
    pools = [rows[~mask] for rows, mask in zip((closing, others), held, strict=True)]
    batch = _BATCH // 2 if own is not None and len(own.true) else _BATCH
    counts = [round(_CLOSING * batch), batch - round(_CLOSING * batch)]
    pairs = [(pool, count) for pool, count in zip(pools, counts, strict=True) if len(pool)]
    if updates < 1 or not pairs:
        return {}
    grip = model.grip
    optimizer = torch.optim.AdamW(grip.parameters(), _RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    for _ in tqdm(range(updates), desc="grip", disable=None):
        rows = torch.cat([pool[torch.randint(len(pool), (count,), generator=generator)] for pool, count in pairs])
        logits, true = _tell(model, _clouded(_true_frames(cache, rows), generator))
        if own is not None and batch < _BATCH:
            imagined = _tell(model, own.select(_draw(own, counts, generator)))
            logits, true = torch.cat([logits, imagined[0]]), torch.cat([true, imagined[1]])
        loss = F.cross_entropy(logits, spread(true))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(grip.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    found = {}
    for name, rows, mask in zip(("closing", "all"), (closing, others), held, strict=True):
        asked = rows[mask][:: max(1, int(mask.sum()) // 2000)]
        if len(asked):
            with torch.no_grad():
                told = [_tell(model, _true_frames(cache, some)) for some in asked.split(256)]
            apart = torch.cat([(likeliest(logits) - true).abs()[:, 0] for logits, true in told])
            found[f"grip_{name}_right"] = round(float((apart < _AGREES).float().mean()), 4)
    return found


@torch.no_grad()
def imagined_closings(model: WorldModel, cache: FrameCache, generator: torch.Generator, rollouts: int) -> Closings:
    """Frames that the model draws itself, in so many rollouts of episodes in which a gripper closes; it is told where
    the gripper truly is, so that what it draws stays what truly happened.
    """
    closing, others = _frames(cache)
    closing = closing[~_unseen(cache)[closing[:, 0]]]
    found: list[Closings] = []
    tokens = model.instruction.tokens(cache.instructions)
    closes = torch.zeros(len(cache.kinematics), dtype=torch.bool)  # by step
    closes[cache.step(*closing.unbind(1))] = True
    episodes, frames_in = closing.unbind(1)
    ends = torch.zeros(len(cache), dtype=torch.long).scatter_reduce(0, episodes, frames_in + 1, reduce="amax")
    batches = -(-rollouts // _ROLLOUTS) if len(closing) else 0
    for _ in tqdm(range(batches), desc="grip on own rollouts", disable=None):
        episode = closing[torch.randint(len(closing), (_ROLLOUTS,), generator=generator), 0].unique()
        start = torch.zeros_like(episode)
        first, kinematics = cache.frame(episode, start), cache.kinematics[cache.step(episode, start)]
        calibrated, lengths = cache.calibrated[episode], ends[episode]
        context = model.context(first, kinematics, tokens[episode], calibrated)
        last = previous = first
        for t in range(int(lengths.max())):
            on = (lengths > t).nonzero()[:, 0]  # the others are drawn no more
            if len(on) < len(episode):
                context, episode, lengths = context.select(on), episode[on], lengths[on]
                last, previous, kinematics, calibrated = last[on], previous[on], kinematics[on], calibrated[on]
            index = torch.full_like(episode, t)
            actions, after = cache.chunk(episode, index), cache.step(episode, index + 1)
            true = cache.kinematics[after, GRIPPER : GRIPPER + 1]
            here = closes[cache.step(episode, index)]
            some = torch.rand(len(episode), generator=generator) < _SOME
            rows = (here | some).nonzero()[:, 0]
            frames = last[rows].to(torch.bfloat16)
            found.append(Closings(frames, kinematics[rows], actions[rows], calibrated[rows], true[rows], here[rows]))
            noise = torch.randn(last.shape, generator=generator)
            with torch.autocast("cpu", torch.bfloat16, enabled=has_bfloat16()):
                drawn = model(noise, torch.ones(len(episode)), last, previous, kinematics, actions, context, true)
            previous, last, kinematics = last, drawn.frame.clamp(-1, 1), drawn.kinematics
    if not found:
        return _true_frames(cache, others[:0])
    return Closings(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def _draw(own: Closings, counts: list[int], generator: torch.Generator) -> Tensor:
    """Rows of `own`: so many closing ones and others, where there are any."""
    pools = [rows.nonzero()[:, 0] for rows in (own.closing, ~own.closing)]
    return torch.cat(
        [
            pool[torch.randint(len(pool), (count,), generator=generator)]
            for pool, count in zip(pools, counts, strict=True)
            if len(pool)
        ]
    )


def _true_frames(cache: FrameCache, rows: Tensor) -> Closings:
    """Those at `rows` (N, 2) of episode and index; `closing` is not told."""
    episode, index = rows.unbind(1)
    true = cache.kinematics[cache.step(episode, index + 1), GRIPPER : GRIPPER + 1]
    now, actions = cache.kinematics[cache.step(episode, index)], cache.chunk(episode, index)
    unknown = torch.zeros(len(rows), dtype=torch.bool)
    return Closings(cache.frame(episode, index), now, actions, cache.calibrated[episode], true, unknown)


def _clouded(frames: Closings, generator: torch.Generator) -> Closings:
    """With noise on half of the pictures."""
    n = len(frames.true)
    amount = _NOISE * torch.rand(n, generator=generator) * (torch.rand(n, generator=generator) < 0.5)
    noise = torch.randn(frames.last.shape, generator=generator)
    return frames._replace(last=frames.last + amount[:, None, None, None] * noise)


def _tell(model: WorldModel, frames: Closings) -> tuple[Tensor, Tensor]:
    """Logits and true positions (B, 1) after frames."""
    with torch.no_grad():
        now = Kinematics.unpack(frames.kinematics)
        then, _ = model.move(frames.kinematics, frames.actions, frames.calibrated)
        maps = model.maps(then, frames.calibrated)
    logits = model.grip(composition.views(frames.last), maps, now, then, frames.actions[:, :, 6])
    return logits, frames.true


def _unseen(cache: FrameCache) -> Tensor:
    """(E,) bool: a tenth of the episodes, and their mirror images (`mirror.with_mirror_images` keeps the order)."""
    number = torch.arange(len(cache))
    number[cache.calibrated < 0] = number[cache.calibrated > 0][: int((cache.calibrated < 0).sum())]
    return number % _HELD_OUT == _HELD_OUT - 1


def _frames(cache: FrameCache) -> tuple[Tensor, Tensor]:
    """Episode and index (N, 2) of the frames after which a gripper told to close moves or has just stopped, and of all
    others that have a next one.
    """
    episode = torch.repeat_interleave(torch.arange(len(cache)), (cache.frame_count - 1).clamp(min=0))
    first = torch.cumsum((cache.frame_count - 1).clamp(min=0), 0) - (cache.frame_count - 1).clamp(min=0)
    index = torch.arange(len(episode)) - first[episode]
    step = cache.step(episode, index)
    now = cache.kinematics[step, GRIPPER]
    told = cache.chunk(episode, index)[:, :, 6].amax(1) > 0.5
    moving = (cache.kinematics[step + cache.actions_per_frame, GRIPPER] - now).abs() > 0.02
    closing = told & moving
    rows = torch.stack([episode, index], 1)
    return rows[closing], rows[~closing]
