"""A policy that moves at random, smoothly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wvl_ros.policies.interface import Chunk


class RandomPolicy:
    """Velocities of a seeded random walk that forgets within half a second; the gripper toggles now and then.

    Attributes: see `Policy`.
    """

    name = "random"
    action_space = "cartesian_velocity"
    chunk_size = execute_steps = 9

    def __init__(self, speed: float = 0.15, memory: float = 0.85, toggle: float = 0.02) -> None:
        """`speed`: deviation of the normalised velocity; `memory`: share kept a step; `toggle`: chance a step."""
        self._speed, self._memory, self._toggle = speed, memory, toggle
        self.reset(0)

    def reset(self, seed: int | None = None) -> None:
        """Starts again at rest with the gripper open."""
        self._random = np.random.default_rng(seed)
        self._velocity = np.zeros((0, 6))
        self._gripper = np.zeros(0)

    def act(self, observations: Sequence[dict[str, np.ndarray]], instructions: Sequence[str]) -> Chunk:
        """A chunk for each of the B observations, each a walk of its own."""
        batch = len(observations)
        if len(self._velocity) != batch:
            self._velocity, self._gripper = np.zeros((batch, 6)), np.zeros(batch)
        actions = np.empty((batch, self.chunk_size, 7))
        fresh = self._speed * np.sqrt(1.0 - self._memory**2)
        for t in range(self.chunk_size):
            self._velocity = self._memory * self._velocity + fresh * self._random.standard_normal((batch, 6))
            flip = self._random.random(batch) < self._toggle
            self._gripper = np.where(flip, 1.0 - self._gripper, self._gripper)
            actions[:, t, :6] = np.clip(self._velocity, -1.0, 1.0)
            actions[:, t, 6] = self._gripper
        return Chunk(actions)
