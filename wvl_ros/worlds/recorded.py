"""A world that plays a recorded episode, whatever the action: the real one beside the imagined one."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from wvl_ros.errors import EpisodeError
from wvl_ros.sans.episode import Episode
from wvl_ros.worlds.droid import CAMERAS, check_action, convert_chunk
from wvl_ros.worlds.interface import Observation, World


class RecordedWorld(World):
    """Plays the observations of the `source` episode from step `start` on; images are scaled to the world's size.

    Actions are checked like anywhere else and then have no effect: `info['commanded_pose']` is the recorded command.
    The outcome is the episode's own when it is played to its end.
    """

    def __init__(self, image_height: int = 192, image_width: int = 320, max_steps: int = 600) -> None:
        super().__init__(image_height, image_width, max_steps)
        self._limit = max_steps
        self._episode: Episode | None = None
        self._start = self._step = 0
        self._commands = np.empty((0, 7))

    @property
    def tasks(self) -> tuple[str, ...]:
        """Empty: the task is the episode's."""
        return ()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Goes to step `start` of the episode `source`; the seed has no effect.

        Raises:
            EpisodeError: no source, or it ends before `start` + 1.
        """
        super().reset(seed=seed)
        options = options or {}
        episode, start = options.get("source"), int(options.get("start", 0))
        if not isinstance(episode, Episode):
            raise EpisodeError(
                "The recorded world plays an episode, but no source was given; for instance source:=droid."
            )
        if not 0 <= start < len(episode) - 1:
            raise EpisodeError(f"The source has steps 0 to {len(episode) - 1}; start {start} leaves nothing to play.")
        self._episode, self._start, self._step = episode, start, 0
        self._instruction = str(options.get("instruction") or episode.instruction)
        self._commands = commanded_poses(episode)
        self.max_steps = min(self._limit, len(episode) - 1 - start)
        return self._observation(episode), self._info(episode, False)

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """The next recorded observation; ends with the recording."""
        if self._episode is None:
            raise EpisodeError("The recorded world was stepped before its first reset.")
        check_action(action, self.action_space_name)
        self._step += 1
        at_end = self._start + self._step == len(self._episode) - 1
        reward = float(self._episode.reward[self._start + self._step - 1])
        truncated = self._step >= self.max_steps and not at_end
        info = self._info(self._episode, reward > 0.5)
        if at_end or truncated:
            info["outcome"] = self._episode.outcome if at_end and self._episode.outcome else "failure"
        return self._observation(self._episode), reward, at_end, truncated, info

    def _observation(self, episode: Episode) -> Observation:
        observation = dict(episode.observation(self._start + self._step))
        for camera in CAMERAS:
            observation[camera] = resize(observation[camera], self.image_height, self.image_width)
        return observation

    def _info(self, episode: Episode, success: bool) -> dict[str, Any]:
        return {
            "task": episode.task,
            "instruction": self._instruction,
            "step": self._step,
            "commanded_pose": self._commands[self._start + self._step],
            "success": success,
            "success_probability": float(success),
            "outcome": "",
        }


def commanded_poses(episode: Episode) -> np.ndarray:
    """Commanded poses (N, 7) of an episode in any action space: row 0 before the first, row t + 1 by action t."""
    start = np.asarray(episode.commanded_start, float)
    poses = (
        convert_chunk(episode.action, episode.action_space, "cartesian_position", episode.joint_position[0], start[:6])
        if len(episode.action)
        else np.empty((0, 7))
    )
    return np.vstack([start, poses])


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """A uint8 (H, W, 3) image scaled to (height, width), by area when it shrinks."""
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BOX))
