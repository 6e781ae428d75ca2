"""Where a policy practises: imagination, or (as its bound) the tabletop in `tabletop_arena`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from wvl_ros.policies.small import SmallPolicy
from wvl_ros.rewards.interface import Judge
from wvl_ros.sans.collect import STEPS
from wvl_ros.sans.episodes import EpisodeEntry
from wvl_ros.training.imagined_episodes import Recorder
from wvl_ros.training.practice import Practice, practise
from wvl_ros.world_model.imagination import Imagination
from wvl_ros.worlds.imagined_start import Start, find_start

_ASKED = 24  # successes of a practice that the second judge is shown


@dataclass(frozen=True)
class Beginning:
    """Where a rollout begins: a control step of a recorded episode."""

    entry: EpisodeEntry
    step: int = 0


class Arena(Protocol):
    """One rollout from each of some beginnings.

    Attributes:
        name: what its successes are called, 'imagined' or 'tabletop'. doubter: name of the second judge, '' for none.
    """

    name: str
    doubter: str

    def practise(
        self,
        policy: SmallPolicy,
        beginnings: Sequence[Beginning],
        seeds: Sequence[int],
        temperature: float,
        generator: torch.Generator,
    ) -> Practice:
        """Rollouts as long as an episode, less what lies behind where they begin; those of one group follow one
        another.

        Args:
            seeds: of each rollout's world. temperature, generator: of the policy's sampling.
        """
        ...

    def doubted(self) -> list[bool]:
        """Whether a second judge turns down each of some successes of the last practice; empty where there is none."""
        ...


class ImaginedArena:
    """Practice in a world model.

    Args:
        imagination: draws the rollouts. rig: of its world model.
        second: a judge of imagined successes that shares nothing with the reward head; None asks nobody.
    """

    name = "imagined"

    def __init__(self, imagination: Imagination, rig: str, second: Judge | None = None) -> None:
        self.imagination, self.rig, self.second = Recorder(imagination), rig, second
        self.doubter = second.name if second is not None else ""
        self._success = torch.empty(0, dtype=torch.bool)
        self._starts: list[Start] = []

    def practise(
        self,
        policy: SmallPolicy,
        beginnings: Sequence[Beginning],
        seeds: Sequence[int],
        temperature: float,
        generator: torch.Generator,
    ) -> Practice:
        """See `Arena.practise`."""
        self._starts, limits = [], []
        for i, (entry, step) in enumerate((b.entry, b.step) for b in beginnings):
            again = i > 0 and beginnings[i] is beginnings[i - 1]
            start = self._starts[-1] if again else find_start(entry.load(), step, self.imagination, self.rig)
            self._starts.append(start)
            # Of a task that is not the tabletop's, `max_steps` is what is left of the recording already.
            limits.append(STEPS[start.task] - step if start.task in STEPS else start.max_steps)
        practice = practise(policy, self.imagination, self._starts, seeds, temperature, generator, limits)
        self._success = practice.success
        return practice

    def doubted(self) -> list[bool]:
        """See `Arena.doubted`."""
        rows = self._success.nonzero()[:, 0][:_ASKED].tolist()
        if self.second is None or not rows:
            return []
        chances = self.second.probability(self.imagination.episodes(rows, self._starts))
        return [bool(chance <= self.second.threshold) for chance in chances]
