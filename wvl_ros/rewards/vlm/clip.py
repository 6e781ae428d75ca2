"""The few frames of an episode that a vision-language judge sees."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wvl_ros.errors import EpisodeError
from wvl_ros.sans.episode import Episode


@dataclass(frozen=True)
class Clip:
    """`frames` uint8 (T, H, W, 3) RGB, and when each was taken: `seconds` float64 (T,) since the episode began."""

    frames: NDArray[np.uint8]
    seconds: NDArray[np.float64]

    @property
    def interval(self) -> float:
        """Mean time between two frames in s; 0 of a single one."""
        count = len(self.seconds)
        return float(self.seconds[-1] - self.seconds[0]) / (count - 1) if count > 1 else 0.0


def cut(episode: Episode, cameras: tuple[str, ...], count: int) -> Clip:
    """`count` frames evenly spread over an episode, or all where there are fewer; several cameras side by side.

    Raises:
        EpisodeError: it lacks one of the cameras.
    """
    missing = [camera for camera in cameras if camera not in episode.images]
    if missing:
        raise EpisodeError(
            f"Episode '{episode.episode_id}' lacks the camera '{missing[0]}'; it has: "
            f"{', '.join(episode.images) or 'none'}."
        )
    stacks = [episode.images[camera] for camera in cameras]
    total = len(stacks[0])
    rows = np.linspace(0, total - 1, min(count, total)).round().astype(int)
    height = stacks[0].shape[1]
    frames = np.concatenate([_with_height(stack[rows], height) for stack in stacks], axis=2)
    return Clip(frames, rows * episode.image_stride / episode.fps)


def _with_height(frames: NDArray[np.uint8], height: int) -> NDArray[np.uint8]:
    if frames.shape[1] == height:
        return frames
    width = max(1, round(frames.shape[2] * height / frames.shape[1]))
    size = width, height
    return np.stack([np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC)) for frame in frames])
