"""A policy that replays the recorded actions of an episode."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wvl_ros.errors import EpisodeError
from wvl_ros.policies.interface import Chunk
from wvl_ros.sans.episode import Episode


class ReplayPolicy:
    """Gives an episode's actions from step `start` on, chunk by chunk; after the last one it repeats the last command.

    Each call of `act` moves on by `execute_steps`, so it wants to be asked exactly when its chunk is used up.

    Attributes: see `Policy`.
    """

    name = "replay"

    def __init__(self, episode: Episode, start: int = 0, chunk_size: int = 15) -> None:
        if not 0 <= start < len(episode) - 1:
            raise EpisodeError(f"The source has {len(episode) - 1} actions; start {start} leaves none to replay.")
        self.action_space = episode.action_space
        self.chunk_size = self.execute_steps = chunk_size
        self._actions = episode.action[start:]
        self._next = 0

    def reset(self, seed: int | None = None) -> None:
        """Back to the first action; the seed has no effect."""
        self._next = 0

    def act(self, observations: Sequence[dict[str, np.ndarray]], instructions: Sequence[str]) -> Chunk:
        """The next chunk, the same for each of the B observations."""
        wanted = np.arange(self._next, self._next + self.chunk_size)
        chunk = self._actions[np.minimum(wanted, len(self._actions) - 1)].copy()
        if self.action_space.endswith("velocity"):
            chunk[wanted >= len(self._actions), :-1] = 0.0
        self._next += self.execute_steps
        return Chunk(np.repeat(chunk[None], len(observations), axis=0))
