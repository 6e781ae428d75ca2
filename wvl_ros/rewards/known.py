"""Judges who only repeat what an episode says of itself: the world's ground truth, and the operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from wvl_ros.errors import EpisodeError
from wvl_ros.rewards.truth import TOLD, is_imagined
from wvl_ros.sans.episode import Episode


class GroundTruth:
    """A world that knows its own state, such as the tabletop, has said how the episode went: 1 or 0.

    Args:
        threshold: any below 1 gives the same verdicts.
    """

    name = "ground_truth"
    sources: ClassVar[tuple[str, ...]] = ("world",)

    def __init__(self, threshold: float = 0.5) -> None:
        self.threshold = threshold

    def probability(self, episodes: Sequence[Episode]) -> NDArray[np.float64]:
        """See `Judge`.

        Raises:
            EpisodeError: this judge does not know the outcome of one of them.
        """
        for episode in episodes:
            if episode.outcome not in TOLD or not self._knows(episode):
                raise EpisodeError(self._refusal(episode))
        return np.array([float(episode.success) for episode in episodes])

    def _knows(self, episode: Episode) -> bool:
        return episode.outcome_source in self.sources and not is_imagined(episode)

    def _refusal(self, episode: Episode) -> str:
        where = (
            "it was imagined, and imagination has no ground truth"
            if is_imagined(episode)
            else f"its outcome '{episode.outcome}' is told by '{episode.outcome_source or 'nobody'}', not by the world"
        )
        return f"Episode '{episode.episode_id}' has no ground truth: {where}; use another judge."


class Operator(GroundTruth):
    """A person has said how the episode went: the operator, or who made the dataset it comes from.

    Args:
        threshold: any below 1 gives the same verdicts.
    """

    name = "operator"
    sources: ClassVar[tuple[str, ...]] = ("operator", "dataset")

    def _knows(self, episode: Episode) -> bool:
        return episode.outcome_source in self.sources

    def _refusal(self, episode: Episode) -> str:
        return f"No operator has labelled episode '{episode.episode_id}'; watch and label it with `wvl label`."
