"""The visual judge beside a world model: how an episode's pictures end, by networks that saw true frames only.

It shares no weights with the reward head, so where the two disagree about imagined episodes one should look.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from wvl_ros.errors import CheckpointError, EpisodeError
from wvl_ros.sans.episode import Episode


class Visual:
    """The probability of an episode is the mean over its last three frames.

    Args:
        checkpoint: the world model beside which the judge lies: a shipped name or a folder.
        threshold: above it an episode is taken for a success.

    Raises:
        CheckpointError: there is no such checkpoint, or no judge beside it.
    """

    name = "visual"

    def __init__(self, checkpoint: str = "small", threshold: float = 0.5) -> None:
        from wvl_ros.checkpoints import find
        from wvl_ros.evaluation.visual_judge import load_judge
        from wvl_ros.world_model.loading import read_config

        folder = find("world_model", checkpoint)
        model = load_judge(folder)
        if model is None:
            raise CheckpointError(f"There is no visual judge beside '{folder}'; `wvl train visual-judge` makes it.")
        config = read_config(folder)
        self._model, self.threshold = model, threshold
        self._size, self._patch = int(config["image_size"]), int(config["patch"])
        self._every = int(config["actions_per_frame"])

    @torch.no_grad()
    def probability(self, episodes: Sequence[Episode]) -> NDArray[np.float64]:
        """See `Judge`.

        Raises:
            EpisodeError: an episode lacks a camera or images at the world model's steps, or is shorter than two frames.
        """
        from wvl_ros.evaluation.visual_judge import LAST
        from wvl_ros.training.frame_cache import episode_frames
        from wvl_ros.world_model import patches

        chances = []
        for episode in episodes:
            frames = patches.to_tensor(episode_frames(episode, self._size, self._patch, self._every))
            if len(frames) < 2:
                raise EpisodeError(f"Episode '{episode.episode_id}' is too short to judge; it has one frame only.")
            now = frames[1:][-LAST:]
            tokens = self._model.tokens([episode.instruction]).expand(len(now), -1)
            logits = self._model(frames[:1].expand(len(now), -1, -1, -1), now, tokens)
            chances.append(float(torch.sigmoid(logits).mean()))
        return np.array(chances)
