"""The one interface of every policy: observations and instructions in, chunks of actions out, batched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Chunk:
    """T actions for each of B observations.

    Attributes:
        actions: float64 (B, T, D) of the policy's action space, the gripper (0..1) last.
        log_probs: float32 (B, T), the log-probability of each action as sampled; None from a policy that has none.
    """

    actions: NDArray[np.float64]
    log_probs: NDArray[np.float32] | None = None


@runtime_checkable
class Policy(Protocol):
    """Anything that turns observations into action chunks.

    Attributes:
        name: what the user calls it.
        action_space: one of `droid.ACTION_SPACES`.
        chunk_size: actions a chunk, T.
        execute_steps: how many of them to execute before asking again.
    """

    name: str
    action_space: str
    chunk_size: int
    execute_steps: int

    def reset(self, seed: int | None = None) -> None:
        """Starts an episode: forgets the last one, seeds the sampling."""

    def act(self, observations: Sequence[dict[str, np.ndarray]], instructions: Sequence[str]) -> Chunk:
        """Chunks for B observations (as `World` gives them) and their B instructions.

        Raises:
            ObservationError: a camera or a state is missing or has the wrong shape.
        """
