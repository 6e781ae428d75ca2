"""Corrections in hindsight: what a success tells of its start teaches every rollout from there.

A policy that clones its own successes hardly moves: what it did in them is what it does anyway. But a success also
tells where the thing was grasped and set down. From then on a demonstrator's next action is known at every state before
a grasp, in the rollouts from that start that went on to fail as well. It is told by a `Demonstrator`: a small network
that sees no images, only state, task and places, cloned from the demonstrations. So this is DAgger (Ross et al. 2011)
with an expert that is learned, and told in hindsight (Andrychowicz et al. 2017) what it cannot see. All of it can be
had of a real robot's recordings too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wvl_ros.errors import EpisodeError
from wvl_ros.policies.network import STATE_DIM, Outputs, PolicyConfig, behaviour_loss
from wvl_ros.sans.episode import Episode
from wvl_ros.training.samples import (
    Array,
    Decisions,
    Samples,
    chunk_targets,
    gather_samples,
    key_places,
    states,
    work_stretches,
)

_SAME_PLACE = 0.02  # m: grasps that far apart at most are of a thing that has not moved
_SLACK = 2  # control steps in which a hand that closes to grasp is where it grasps
_JITTER = 0.02  # standard deviation of the places' inputs in training, 1 mm and 4 mm
_STEPS, _BATCH, _RATE, _WIDTH = 12_000, 64, 1e-3, 256


class Demonstrator(nn.Module):
    """What a demonstrator does at a state who knows the key places of the episode.

    Args:
        tasks: whose demonstrations it is cloned from. chunk_size: actions it tells.
    """

    def __init__(self, tasks: Sequence[str], chunk_size: int) -> None:
        super().__init__()
        self.tasks, self.chunk_size = tuple(tasks), chunk_size
        layers: list[nn.Module] = []
        width = STATE_DIM + len(self.tasks) + 2 + 12
        for _ in range(3):
            layers += [nn.Linear(width, _WIDTH), nn.SiLU()]
            width = _WIDTH
        self.layers = nn.Sequential(*layers, nn.Linear(width, chunk_size * 7))

    def forward(self, known: Tensor) -> Outputs:
        """The chunk's mean and the gripper's logits for inputs of `known`."""
        out = self.layers(known).view(len(known), self.chunk_size, 7)
        return Outputs(out[..., :6], out[..., 6], known.new_zeros(len(known), 6))

    def known(self, state: Array, task: str, places: Array) -> Tensor:
        """Inputs (N, F) of states (N, 10) and key places (N, 6), NaN where there is none."""
        position, seen = state[:, :3], np.isfinite(places[:, [0, 3]])
        offsets = np.nan_to_num((places.reshape(-1, 2, 3) - position[:, None]).reshape(-1, 6))
        which = np.zeros((len(state), len(self.tasks)))
        which[:, self.tasks.index(task)] = 1.0
        centred = (position - (0.5, 0.0, 0.25)) / (0.12, 0.2, 0.12)
        columns = [centred, state[:, 3:], which, seen, offsets / 0.05, offsets / 0.2]
        return torch.from_numpy(np.concatenate(columns, 1)).float()

    @torch.no_grad()
    def tell(self, state: Array, task: str, places: Array) -> Array:
        """Chunks (N, T, 7): velocities within -1..1, and the gripper 0 or 1."""
        out = self(self.known(state, task, places))
        closed = (out.gripper > 0).float()[..., None]
        return torch.cat([out.mean.clamp(-1, 1), closed], -1).double().numpy()


class Lessons:
    """What a demonstrator is cloned from: every control step of the demonstrations that pass by."""

    def __init__(self, chunk_size: int) -> None:
        self.chunk_size = chunk_size
        self._of_task: dict[str, list[tuple[Array, Array, Array]]] = {}

    def listen(self, episodes: Iterable[Episode]) -> Iterator[Episode]:
        """The same episodes; each is noted."""
        for episode in episodes:
            steps = np.arange(len(episode) - 1)
            chunks = chunk_targets(episode, self.chunk_size, steps)
            told = ~np.isnan(chunks[:, 0, 0])
            part = (states(episode, steps[told]), chunks[told], key_places(episode, steps[told]))
            self._of_task.setdefault(episode.task, []).append(part)
            yield episode

    def learn(self, seed: int = 0, steps: int = _STEPS) -> Demonstrator:
        """A demonstrator, fitted anew."""
        tasks = sorted(self._of_task)
        if not tasks:
            raise EpisodeError(
                "There are no demonstrations from which corrections could be learned: add some to --data."
            )
        generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            demonstrator = Demonstrator(tasks, self.chunk_size)
        parts = [(task, *part) for task in tasks for part in self._of_task[task]]
        known = torch.cat([demonstrator.known(state, task, places) for task, state, _, places in parts])
        actions = torch.from_numpy(np.concatenate([chunks for _, _, chunks, _ in parts])).float()
        blind = torch.full((_BATCH, 6), math.nan)  # its own places are not asked for
        optimizer = torch.optim.AdamW(demonstrator.parameters(), _RATE, weight_decay=1e-3)
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = _RATE * (0.02 + 0.49 * (1 + math.cos(math.pi * step / steps)))
            rows = torch.randint(len(known), (_BATCH,), generator=generator)
            given = known[rows]
            given[:, -12:] += _JITTER * torch.randn(_BATCH, 12, generator=generator)
            loss = behaviour_loss(demonstrator(given), actions[rows], blind)["loss"]
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        return demonstrator.eval()


@dataclass(frozen=True)
class Grasp:
    """Of an episode that grasps once, or again and again at one place: flange positions (3,) where the hand closed and
    where it opened at the end.
    """

    closed: Array
    opened: Array


def find_grasp(episode: Episode) -> Grasp | None:
    """The grasp of a success; None where something else was done (a push closes the hand high above) or where the thing
    was moved between two grasps.
    """
    stretches = work_stretches(episode)
    closing = closings(episode)
    if not stretches or not len(closing):
        return None
    if any(np.abs(closing - start).min() > _SLACK for start, _ in stretches):
        return None
    first, last = (episode.cartesian_position[start, :3] for start in (stretches[0][0], stretches[-1][0]))
    if np.linalg.norm(first[:2] - last[:2]) > _SAME_PLACE:
        return None
    return Grasp(last, episode.cartesian_position[stretches[-1][1], :3])


def closings(episode: Episode) -> NDArray[np.int64]:
    """Control steps at which the hand is told to close that was open before."""
    closed = np.concatenate([[False], episode.action[:, -1] >= 0.5])
    return np.flatnonzero(closed[1:] & ~closed[:-1])


def corrected(groups: Iterable[Sequence[Episode]], demonstrator: Demonstrator, config: PolicyConfig) -> Samples | None:
    """What rollouts teach whose start is understood; None where none is.

    Before its first grasp every state teaches what the demonstrator would do; after that those of the successes teach
    what was done.

    Args:
        groups: rollouts from one start each, of known or judged outcome.
    """
    return gather_samples((d for group in groups for d in _corrected(group, demonstrator, config)), config)


def _corrected(group: Sequence[Episode], demonstrator: Demonstrator, config: PolicyConfig) -> Iterator[Decisions]:
    if not group or group[0].task not in demonstrator.tasks:
        return
    grasps = [grasp for episode in group if episode.outcome == "success" and (grasp := find_grasp(episode))]
    if not grasps:
        return
    # Each of them has its own error, and a judge may have been mistaken in one.
    closed, opened = (np.median([getattr(grasp, name) for grasp in grasps], 0) for name in ("closed", "opened"))
    for episode in group:
        steps = np.arange(0, len(episode) - 1, episode.image_stride)
        first = closings(episode)
        before = steps <= (first[0] if len(first) else len(episode))
        state = states(episode, steps)
        places = np.full((len(steps), 6), np.nan)
        places[before] = np.concatenate([closed, opened])
        chunks = np.full((len(steps), config.chunk_size, 7), np.nan)
        chunks[before] = demonstrator.tell(state[before], episode.task, places[before])
        if episode.outcome == "success":
            chunks[~before] = chunk_targets(episode, config.chunk_size)[~before]
            places[:, 3:] = opened
        yield Decisions(episode, steps, chunks, places)
