"""What goes into the world's thread and comes out of it: requests for episodes, and reports of each step."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from wvl_ros.sans.bags.topics import RUNNING
from wvl_ros.worlds.interface import Observation


@dataclass(frozen=True)
class StepReport:
    """Where an episode stands after one observation; `stamp` in ns."""

    episode_id: str
    stamp: int
    step: int
    max_steps: int
    task: str
    instruction: str
    source: str
    seed: int
    commanded_pose: np.ndarray
    reward: float = 0.0
    total_reward: float = 0.0
    success_probability: float = 0.0
    state: int = RUNNING
    outcome: str = ""
    message: str = ""
    frames_per_second: float = 0.0
    late_steps: int = 0


@dataclass
class EpisodeRequest:
    """What a reset asks for.

    `started` yields the episode id and `finished` the last report; either may hold a `WvlError` instead. Whoever
    gives a reason in `interrupt` has the episode aborted (and then wakes the chunk store).
    """

    task: str = ""
    instruction: str = ""
    source: str = ""
    start: int = 0
    seed: int = -1
    started: Future[str] = field(default_factory=Future)
    finished: Future[StepReport] = field(default_factory=Future)
    on_step: Callable[[StepReport], None] = lambda report: None
    interrupt: str = ""


class Stage(Protocol):
    """Where the loop's reports go. Called in the loop's thread."""

    def observed(self, observation: Observation, report: StepReport) -> None:
        """A new observation; also called again for the same one when a subscriber came late."""

    def changed(self, report: StepReport) -> None:
        """The episode's state changed."""

    def missing_chunk(self, step: int, seconds: float) -> None:
        """No chunk for a step has come for a while."""

    def failed(self, error: Exception) -> None:
        """The world could not be made, or broke."""
