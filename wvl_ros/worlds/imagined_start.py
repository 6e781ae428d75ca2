"""Where an imagined rollout starts: any step of a recorded episode, or a fresh reset of the tabletop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from wvl_ros.errors import EpisodeError, ObservationError
from wvl_ros.sans.episode import Episode
from wvl_ros.world_model import patches
from wvl_ros.world_model.imagination import Imagination
from wvl_ros.world_model.kinematics import Kinematics
from wvl_ros.world_model.rollout import first_kinematics
from wvl_ros.worlds import droid
from wvl_ros.worlds.interface import World
from wvl_ros.worlds.recorded import commanded_poses

MAX_STEPS = 90  # of a start that neither its task nor the rest of its recording limits


@dataclass(frozen=True)
class Start:
    """One rollout's start.

    `images`: of each camera as recorded, uint8 (H, W, 3). `views`: uint8 (3, h, w, 3) as the model sees them.
    `kinematics`: packed (1, 39). `joints` (7,) rad, `pose` (6,) m and rad: as measured. `calibrated`: whether the
    images are of the model's rig. `max_steps`: control steps before the task's limit, or what is left of the recording.
    """

    images: dict[str, NDArray[np.uint8]]
    views: NDArray[np.uint8]
    kinematics: torch.Tensor
    joints: NDArray[np.float64]
    pose: NDArray[np.float64]
    calibrated: bool
    instruction: str
    task: str
    max_steps: int


def find_start(
    episode: Episode, step: int, imagination: Imagination, rig: str, *, instruction: str = "", task: str = ""
) -> Start:
    """The start of a rollout of `imagination` at a step of an episode.

    Args:
        rig: of the model's calibrated cameras. instruction, task: other ones than the episode's.

    Raises:
        ObservationError: the source lacks a camera, or its images are smaller than the model's.
        EpisodeError: the step lies outside the episode.
    """
    if not 0 <= step < len(episode):
        raise EpisodeError(f"The source has steps 0 to {len(episode) - 1}; it cannot start at {step}.")
    images = _images(episode, step, imagination.smallest_image)
    views = [patches.resize(images[camera][None], *imagination.image_size)[0] for camera in droid.CAMERAS]
    task = task or episode.task
    return Start(
        images=images,
        views=np.stack(views),
        kinematics=_kinematics(episode, step),
        joints=np.array(episode.joint_position[step], float),
        pose=np.array(episode.cartesian_position[step], float),
        calibrated=is_calibrated(episode, rig),
        instruction=instruction or episode.instruction,
        task=task,
        max_steps=_limit(task, len(episode) - 1 - step),
    )


def fresh_episode(tabletop: World, seed: int, options: dict[str, Any]) -> Episode:
    """A reset of the tabletop as an episode of one observation; options `task`, `instruction`, `variant`."""
    chosen = {key: options[key] for key in ("task", "instruction", "variant") if options.get(key)}
    observation, info = tabletop.reset(seed=seed, options=chosen)
    return Episode(
        images={camera: observation[camera][None] for camera in droid.CAMERAS},
        joint_position=observation["joint_position"][None],
        cartesian_position=observation["cartesian_position"][None],
        gripper_position=observation["gripper_position"][None],
        action=np.empty((0, 7)),
        reward=np.empty(0, np.float32),
        task=info["task"],
        instruction=info["instruction"],
        source="reset/tabletop",
        commanded_start=info["commanded_pose"],
        extra={"seed": seed, "variant": info["variant"]},
    )


def is_calibrated(episode: Episode, rig: str) -> bool:
    """Whether an episode was seen by the cameras of `rig`: its source is '<who>/<rig>', or it was imagined from
    there.
    """
    place = str(episode.extra.get("rig", episode.source.rpartition("/")[2]))
    return bool(rig) and place in (rig, "imagined")


def _images(episode: Episode, step: int, smallest: int) -> dict[str, NDArray[np.uint8]]:
    missing = [camera for camera in droid.CAMERAS if camera not in episode.images]
    if missing:
        raise ObservationError(
            f"The source lacks the camera '{missing[0]}'; the world model needs {', '.join(droid.CAMERAS)}."
        )
    images = {camera: episode.images[camera][step // episode.image_stride] for camera in droid.CAMERAS}
    for camera, image in images.items():
        height, width = image.shape[:2]
        if min(height, width) < smallest:
            raise ObservationError(
                f"The images of '{camera}' are {width}x{height} pixels; the world model needs {smallest}x{smallest} "
                "or more."
            )
    return images


def _limit(task: str, left: int) -> int:
    from wvl_ros.worlds.tasks import TASKS

    return TASKS[task].max_steps if task in TASKS else left or MAX_STEPS


def _kinematics(episode: Episode, step: int) -> torch.Tensor:
    """Packed kinematics (1, 39) of a step of an episode, with its motion where there was one before."""
    commands = commanded_poses(episode) if step else np.asarray(episode.commanded_start, float)[None]
    rows = [max(0, step - 1), step]
    poses, grippers = (torch.from_numpy(a[rows]) for a in (episode.cartesian_position, episode.gripper_position))
    if step == 0:
        return first_kinematics(poses[:1], grippers[:1], torch.from_numpy(commands))
    return Kinematics.recorded(poses, grippers, torch.from_numpy(commands[rows])).pack()[1:].float()
