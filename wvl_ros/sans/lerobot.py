"""DROID episodes out of LeRobot datasets: `lerobot/droid_1.0.1` (v3.0, v2.1), openpi's ports and their like.

Known names, newest first:
    cameras   observation.images.exterior_1_left | observation.images.exterior_image_1_left | exterior_image_1_left
    states    observation.state.joint_position | joint_position | observation.state (7 joints and the gripper)
    actions   action.cartesian_position, .joint_position, .joint_velocity, .cartesian_velocity, each with
              action.gripper_position | actions (openpi: 7 joint velocities and the gripper) | action (7 joints and it);
              joint velocities become the joint targets that DROID's robot made of them
    outcome   is_episode_successful, else unknown
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from wvl_ros.errors import EpisodeError
from wvl_ros.sans.episode import Episode
from wvl_ros.sans.lerobot_files import LerobotFiles, is_lerobot
from wvl_ros.worlds.droid import CAMERAS, CONTROL_HZ, forward_kinematics, joint_targets

__all__ = ["is_lerobot", "read_lerobot"]

Array = NDArray[np.float64]

_CAMERA_NAMES = {
    camera: (
        f"observation.images.{camera.replace('_image', '')}",
        f"observation.images.{camera}",
        f"observation.image.{camera}",
        camera,
    )
    for camera in CAMERAS
}
_JOINTS = ("observation.state.joint_position", "observation.state.joint_positions", "joint_position")
_POSES = ("observation.state.cartesian_position", "cartesian_position")
_GRIPPERS = ("observation.state.gripper_position", "gripper_position")
_STATE = "observation.state"
_SPACES = ("cartesian_position", "joint_position", "joint_velocity", "cartesian_velocity")
_ACTION_GRIPPER = "action.gripper_position"
_JOINED_ACTIONS = {"actions": "joint_velocity", "action": "joint_position"}
_INSTRUCTIONS = ("language_instruction", "language_instruction_2", "language_instruction_3")
_SUCCESS = "is_episode_successful"
_FACTS = ("task_category", "building", "collector_id", "date")


def read_lerobot(path: Path | str) -> Iterator[tuple[str, Callable[[], Episode]]]:
    """The episodes of a LeRobot dataset, each read when its function is called.

    Yields:
        '<folder>#<episode index>' and a function that gives the episode, or raises EpisodeError when its files are
        missing or damaged. States and images are at 15 Hz; the action of the last row leads nowhere and is dropped.
        The outcome's source is 'dataset'; the reward is 1 at the last step of a success, else 0.

    Raises:
        EpisodeError: no LeRobot dataset, one of other cameras or another rate, or without a Franka's states.
    """
    root = Path(path)
    files = LerobotFiles.open(root)
    if abs(files.fps - CONTROL_HZ) > 1e-3:
        raise EpisodeError(
            f"The LeRobot dataset '{root}' runs at {files.fps:g} Hz; resample it to DROID's {CONTROL_HZ} Hz first."
        )
    cameras = _cameras(files)
    _state_names(files)
    _action_names(files)
    for index in files.episodes:
        yield f"{root.resolve().name}#{index}", partial(_read, files, cameras, index)


def _cameras(files: LerobotFiles) -> dict[str, str]:
    """DROID's camera -> the dataset's name of it."""
    found = {
        camera: next((name for name in names if name in files.features), "") for camera, names in _CAMERA_NAMES.items()
    }
    if missing := [camera for camera, name in found.items() if not name]:
        own = [name for name, feature in files.features.items() if feature.get("dtype") in ("image", "video")]
        has = ", ".join(own) or "none"
        raise EpisodeError(f"The LeRobot dataset '{files.root}' lacks DROID's camera '{missing[0]}'; it has: {has}.")
    return found


def _state_names(files: LerobotFiles) -> dict[str, str]:
    """'joints', 'poses' and 'grippers' -> a column; '' for what must be computed from others."""
    names = {
        "joints": _known(files, _JOINTS, 7),
        "poses": _known(files, _POSES, 6),
        "grippers": _known(files, _GRIPPERS, 1),
    }
    joined = _width(files, _STATE) == 8
    if not joined and not (names["joints"] and names["grippers"]):
        missing = _JOINTS[0] if not names["joints"] else _GRIPPERS[0]
        raise EpisodeError(f"The LeRobot dataset '{files.root}' has no '{missing}', so it is no DROID data.")
    return names


def _action_names(files: LerobotFiles) -> tuple[str, str]:
    """The action space and the column that holds it."""
    if _width(files, _ACTION_GRIPPER) == 1:
        for space in _SPACES:
            if _width(files, f"action.{space}") == (6 if space.startswith("cartesian") else 7):
                return space, f"action.{space}"
    for column, space in _JOINED_ACTIONS.items():
        if _width(files, column) == 8:
            return space, column
    raise EpisodeError(
        f"The LeRobot dataset '{files.root}' has none of DROID's action spaces (such as 'action.cartesian_position')."
    )


def _known(files: LerobotFiles, names: tuple[str, ...], width: int) -> str:
    return next((name for name in names if _width(files, name) == width), "")


def _width(files: LerobotFiles, name: str) -> int:
    shape = files.features.get(name, {}).get("shape") or [0]
    return int(shape[0]) if len(shape) == 1 else 0


def _read(files: LerobotFiles, cameras: Mapping[str, str], index: int) -> Episode:
    states = _state_names(files)
    space, action_column = _action_names(files)
    texts = [name for name in (*_INSTRUCTIONS, *_FACTS, _SUCCESS) if name in files.features]
    columns = [name for name in (*states.values(), action_column, *texts) if name]
    joined = not (states["joints"] and states["grippers"])
    columns += [_STATE] if joined else []
    separate = action_column not in _JOINED_ACTIONS
    columns += [_ACTION_GRIPPER] if separate else []
    table = files.table(index, [*dict.fromkeys(columns), "episode_index"])
    state = _matrix(table, _STATE) if joined else np.empty((table.num_rows, 8))
    joints = _matrix(table, states["joints"]) if states["joints"] else state[:, :7]
    grippers = _matrix(table, states["grippers"]) if states["grippers"] else state[:, 7:]
    poses = _matrix(table, states["poses"]) if states["poses"] else _poses(joints)
    action = _matrix(table, action_column)
    if separate:
        action = np.hstack([action, _matrix(table, _ACTION_GRIPPER)])
    action[:, -1] = action[:, -1].clip(0.0, 1.0)
    if space == "joint_velocity":
        # DROID's robot sets its target to the measured joints plus the velocity: integrated, its lag would add up.
        action[:, :7], space = joint_targets(joints, action[:, :7]), "joint_position"
    success = _first(table, _SUCCESS)
    success = success if success is None else bool(np.ravel(success)[0])
    wordings = [text for text in (_text(table, name) for name in _INSTRUCTIONS) if text]
    wordings = wordings or [str(text) for text in files.episodes[index].get("tasks") or [] if text]
    reward = np.zeros(len(joints) - 1, np.float32)
    reward[-1:] = bool(success)
    extra: dict[str, object] = {name: text for name in _FACTS if (text := _text(table, name))}
    if len(wordings) > 1:
        extra["instructions"] = wordings
    return Episode(
        images={camera: files.images(index, name) for camera, name in cameras.items()},
        joint_position=joints,
        cartesian_position=poses,
        gripper_position=grippers.clip(0.0, 1.0),
        action=action[:-1],
        reward=reward,
        task="droid",
        instruction=wordings[0] if wordings else "",
        outcome="" if success is None else "success" if success else "failure",
        outcome_source="" if success is None else "dataset",
        source="teleop/droid",
        episode_id=f"{files.root.resolve().name}-{index:06d}",
        action_space=space,
        extra=extra,
    )


def _poses(joints: Array) -> Array:
    return np.stack([forward_kinematics(row) for row in joints])


def _matrix(table: pa.Table, name: str) -> Array:
    """A column as float64 (N, D); scalars become D = 1."""
    try:
        values = np.asarray(table[name].to_pylist(), float)
    except (TypeError, ValueError) as error:
        raise EpisodeError(f"The column '{name}' of a LeRobot dataset is not a table of numbers: {error}.") from error
    return values.reshape(table.num_rows, -1)


def _first(table: pa.Table, name: str) -> Any:
    return table[name][0].as_py() if name in table.column_names else None


def _text(table: pa.Table, name: str) -> str:
    value = _first(table, name)
    value = value[0] if isinstance(value, list) and value else value
    value = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    return value.strip() if isinstance(value, str) else ""
