"""Serves any policy's chunks step by step, as the world node does: converted once, re-planned after `execute_steps`."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wvl_ros.policies.interface import Policy
from wvl_ros.worlds import droid


class ChunkBroker:
    """One episode's executor: asks the policy when its chunk is used up and hands out one action a step.

    A chunk is converted to the world's action space at its start, from the last commanded pose, so that the servo's
    lag does not add up.
    """

    def __init__(self, policy: Policy, action_space: str = "cartesian_position") -> None:
        """Wraps a policy for a world of the given action space."""
        self.policy = policy
        self.action_space = action_space
        self._actions: list[NDArray[np.float64]] = []

    def reset(self, seed: int | None = None) -> None:
        """Starts an episode: drops what is left of the last chunk and resets the policy."""
        self._actions = []
        self.policy.reset(seed)

    def action(
        self, observation: dict[str, np.ndarray], instruction: str, commanded_pose: ArrayLike
    ) -> NDArray[np.float64]:
        """The next action (D,) in the world's action space.

        Args:
            observation: as a `World` gives it; looked at only when a new chunk is due.
            instruction: what to do.
            commanded_pose: (7,) pose and gripper command in force, `info["commanded_pose"]`.

        Raises:
            ActionError: the policy's chunk is malformed.
            ObservationError: the policy cannot use the observation.
        """
        if not self._actions:
            chunk = self.policy.act([observation], [instruction]).actions[0]
            pose = np.asarray(commanded_pose, float)[:6]
            converted = droid.convert_chunk(
                chunk, self.policy.action_space, self.action_space, observation["joint_position"], pose
            )
            self._actions = list(converted[: self.policy.execute_steps])
        return self._actions.pop(0)
