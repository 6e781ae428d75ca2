"""The world model's reward head as a judge: of what it imagined while it imagined it, and of recorded episodes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from wvl_ros.errors import CheckpointError, EpisodeError
from wvl_ros.evaluation.outcome import best_run
from wvl_ros.rewards.truth import is_imagined
from wvl_ros.sans.episode import Episode
from wvl_ros.sans.labels import JudgeConfig, RewardModel

CHANCES = "success_probability"  # in `Episode.extra`


class RewardHead:
    """The probability of an episode is the highest that holds for the model's `success_frames` frames in a row.

    So it is above the threshold exactly when the model itself says success. An imagined episode has kept what the head
    said of each frame; any other is shown to the model anew, see `RewardModel`, which takes the small one.

    Args:
        checkpoint: a shipped world model or a folder.
        threshold: None takes the model's `success_threshold`.

    Raises:
        CheckpointError: there is no such checkpoint.
    """

    name = "reward_head"

    def __init__(self, checkpoint: str = "small", threshold: float | None = None) -> None:
        from wvl_ros.checkpoints import find
        from wvl_ros.world_model.loading import read_config

        folder = find("world_model", checkpoint)
        config = read_config(folder)
        try:
            own, self.frames = float(config["success_threshold"]), int(config["success_frames"])
            self._steps = int(config["actions_per_frame"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"'{folder}' is no world model with a reward head (config.json: {error}).") from error
        self.checkpoint = checkpoint
        self.threshold = own if threshold is None else threshold

    def probability(self, episodes: Sequence[Episode]) -> NDArray[np.float64]:
        """See `Judge`.

        Raises:
            EpisodeError: an episode that was not imagined lacks images, or what is kept of an imagined one is damaged.
            CheckpointError: the weights are missing, damaged or of a large model (for episodes that were not imagined).
        """
        return np.array([best_run(self.frame_probabilities(episode), self.frames) for episode in episodes])

    def frame_probabilities(self, episode: Episode) -> NDArray[np.float64]:
        """(T,) of each frame of an episode."""
        if is_imagined(episode) and CHANCES in episode.extra:
            return self._kept(episode)
        return self._model.judge(episode).probabilities

    def _kept(self, episode: Episode) -> NDArray[np.float64]:
        try:
            chances = np.asarray(episode.extra[CHANCES], np.float64)
        except (TypeError, ValueError):
            chances = np.full(1, np.nan)
        if chances.ndim != 1 or not ((chances >= 0) & (chances <= 1)).all():
            raise EpisodeError(
                f"Episode '{episode.episode_id}' is damaged: its '{CHANCES}' should be a list of numbers in 0..1."
            )
        if len(chances) == len(episode) > 1:  # from a bag: of every control step; a frame is drawn after its actions
            return chances[self._steps :: self._steps]
        return chances

    @cached_property
    def _model(self) -> RewardModel:
        return RewardModel(JudgeConfig(self.checkpoint))
