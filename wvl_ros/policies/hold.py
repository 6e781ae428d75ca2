"""A policy that keeps the arm where it is told to be."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wvl_ros.errors import ObservationError
from wvl_ros.policies.interface import Chunk


class HoldPolicy:
    """Zero velocity, and the gripper as it is.

    Attributes: see `Policy`.
    """

    name = "hold"
    action_space = "cartesian_velocity"
    chunk_size = execute_steps = 9

    def reset(self, seed: int | None = None) -> None:
        """Nothing to forget."""

    def act(self, observations: Sequence[dict[str, np.ndarray]], instructions: Sequence[str]) -> Chunk:
        """Standing still, for each of the B observations."""
        actions = np.zeros((len(observations), self.chunk_size, 7))
        for row, observation in zip(actions, observations, strict=True):
            if "gripper_position" not in observation:
                raise ObservationError(
                    "The observation lacks 'gripper_position'; the hold policy keeps the gripper by it."
                )
            row[:, 6] = observation["gripper_position"][0]
        return Chunk(actions)
