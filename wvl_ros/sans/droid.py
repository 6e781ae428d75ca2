"""Reads a DROID episode as published for video world models: `annotation.json` beside one 5 Hz MP4 a camera."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from wvl_ros.errors import EpisodeError
from wvl_ros.sans.episode import Episode
from wvl_ros.worlds.droid import CAMERAS

ANNOTATION = "annotation.json"
IMAGE_STRIDE = 3  # 15 Hz states, 5 Hz video


def read_droid(folder: Path | str) -> Episode:
    """One DROID episode: states and actions at 15 Hz, images at 5 Hz (`image_stride` 3).

    The annotation has an action for each state; the last leads to no recorded state and is dropped. Frame i of a
    video belongs to step 3 i, so up to two last steps have no frame of their own. The reward is 1 at the last step of
    a success, else 0.

    Raises:
        EpisodeError: a file is missing or damaged, or a video's length does not fit the states.
    """
    folder = Path(folder)
    note = _read_annotation(folder / ANNOTATION)
    joints = _column(note, "observation.state.joint_position", folder)
    steps = len(joints)
    images = {camera: read_video(folder / f"{camera}.mp4") for camera in CAMERAS}
    frames = (steps - 1) // IMAGE_STRIDE + 1
    for camera, stack in images.items():
        if len(stack) != frames:
            raise EpisodeError(
                f"'{folder / camera}.mp4' has {len(stack)} frames where {steps} states at 15 Hz call for {frames} "
                "at 5 Hz; copy the episode again."
            )
    success = bool(note.get("success", False))
    reward = np.zeros(steps - 1, np.float32)
    reward[-1:] = success
    poses = _column(note, "action.cartesian_position", folder)
    grippers = _column(note, "action.gripper_position", folder).reshape(-1, 1)
    texts = note.get("texts") or [""]
    return Episode(
        images=images,
        joint_position=joints,
        cartesian_position=_column(note, "observation.state.cartesian_position", folder),
        gripper_position=np.clip(_column(note, "observation.state.gripper_position", folder).reshape(-1, 1), 0.0, 1.0),
        action=np.hstack([poses, np.clip(grippers, 0.0, 1.0)])[:-1],
        reward=reward,
        task="droid",
        instruction=str(texts[0]),
        outcome="success" if success else "failure",
        outcome_source="dataset",
        source="teleop/droid",
        episode_id=f"droid-{note.get('episode_id', folder.name)}",
        image_stride=IMAGE_STRIDE,
    )


def read_video(path: Path) -> NDArray[np.uint8]:
    """All frames of a video file, uint8 (M, H, W, 3) RGB.

    Raises:
        EpisodeError: no such file, or not a video.
    """
    if not path.is_file():
        raise EpisodeError(f"The episode lacks the video '{path}'; copy the whole folder.")
    try:
        with av.open(str(path)) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    except (av.error.FFmpegError, IndexError) as error:
        raise EpisodeError(f"'{path}' cannot be read as a video: {error}.") from error
    if not frames:
        raise EpisodeError(f"'{path}' holds no frames; copy the episode again.")
    return np.stack(frames)


def _read_annotation(path: Path) -> dict[str, Any]:
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise EpisodeError(
            f"There is no '{path}'; a DROID episode is a folder with {ANNOTATION} and three MP4s."
        ) from None
    except (OSError, ValueError) as error:
        raise EpisodeError(f"'{path}' cannot be read: {error}.") from error
    if not isinstance(note, dict):
        raise EpisodeError(f"'{path}' is not a DROID annotation: it holds no table of names.")
    return note


def _column(note: dict[str, Any], name: str, folder: Path) -> NDArray[np.float64]:
    if not note.get(name):
        raise EpisodeError(f"'{folder / ANNOTATION}' lacks '{name}'; copy the episode again.")
    try:
        return np.asarray(note[name], float)
    except (TypeError, ValueError) as error:
        raise EpisodeError(f"'{name}' in '{folder / ANNOTATION}' is not a table of numbers.") from error
