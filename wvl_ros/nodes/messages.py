"""Observations, commands and status as ROS messages, and back."""

from __future__ import annotations

import array
from dataclasses import dataclass
from typing import Any

import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import PoseStamped
from numpy.typing import NDArray
from sensor_msgs.msg import CameraInfo, JointState

from wvl_ros.errors import ActionError
from wvl_ros.msg import ActionChunk
from wvl_ros.policies.interface import Chunk
from wvl_ros.worlds.droid import CONTROL_HZ, FINGER_NAMES, FINGER_TRAVEL, JOINT_NAMES, check_chunk
from wvl_ros.worlds.quaternion import euler_to_quaternion

BASE_FRAME = "base"
SECOND = 1_000_000_000


def to_time(stamp: int) -> Time:
    """A message's time from ns."""
    return Time(sec=stamp // SECOND, nanosec=stamp % SECOND)


def to_nanoseconds(time: Time) -> int:
    """ns from a message's time."""
    return int(time.sec) * SECOND + int(time.nanosec)


def joint_state(observation: dict[str, np.ndarray], stamp: Time) -> JointState:
    """Seven joints in rad and two fingers in m (0 closed .. 0.04 open)."""
    finger = FINGER_TRAVEL * (1.0 - float(observation["gripper_position"][0]))
    message = JointState(name=[*JOINT_NAMES, *FINGER_NAMES])
    message.header.stamp, message.header.frame_id = stamp, BASE_FRAME
    message.position = [*observation["joint_position"].tolist(), finger, finger]
    return message


def flange_pose(observation: dict[str, np.ndarray], stamp: Time) -> PoseStamped:
    """The flange in the robot's base frame."""
    pose = observation["cartesian_position"]
    message = PoseStamped()
    message.header.stamp, message.header.frame_id = stamp, BASE_FRAME
    message.pose.position.x, message.pose.position.y, message.pose.position.z = pose[:3].tolist()
    x, y, z, w = euler_to_quaternion(pose[3:6]).tolist()
    message.pose.orientation.x, message.pose.orientation.y = x, y
    message.pose.orientation.z, message.pose.orientation.w = z, w
    return message


def camera_info(image: np.ndarray, matrix: NDArray[np.float64] | None, stamp: Time, frame_id: str) -> CameraInfo:
    """A pinhole camera without distortion; K all zero, as ROS marks an uncalibrated one, without a `matrix` (3, 3)."""
    message = CameraInfo()
    message.header.stamp, message.header.frame_id = stamp, frame_id
    message.height, message.width = image.shape[:2]
    if matrix is not None and np.any(matrix):
        message.distortion_model = "plumb_bob"
        message.d = [0.0] * 5
        message.k = np.asarray(matrix, float).ravel().tolist()
        message.r = np.eye(3).ravel().tolist()
        message.p = np.hstack([matrix, np.zeros((3, 1))]).ravel().tolist()
    return message


@dataclass(frozen=True)
class PlannedChunk:
    """A checked chunk: `actions` (T, D) of `space`, the first of which leads from `step` to `step` + 1."""

    episode_id: str
    step: int
    space: str
    actions: NDArray[np.float64]
    execute_steps: int


def chunk_message(chunk: Chunk, space: str, execute_steps: int, header: dict[str, Any], stamp: Time) -> ActionChunk:
    """The message of the first (and only) row of a chunk; `header`: episode_id, chunk_id, step."""
    actions = chunk.actions[0]
    message = ActionChunk(**header)
    message.header.stamp = stamp
    message.action_space, message.dt = space, 1.0 / CONTROL_HZ
    message.horizon, message.action_dim = actions.shape
    message.execute_steps = execute_steps
    message.actions = array.array("d", actions.ravel().tolist())
    if chunk.log_probs is not None:
        message.log_probs = array.array("f", chunk.log_probs[0].tolist())
    return message


def read_chunk(message: ActionChunk) -> PlannedChunk:
    """The chunk in a message; actions out of range are clipped with a warning.

    Raises:
        ActionError: no action, numbers that do not fit, NaN or infinity, another rate.
        UnknownNameError: an action space that does not exist.
    """
    horizon, dim = int(message.horizon), int(message.action_dim)
    if horizon < 1 or len(message.actions) != horizon * dim:
        raise ActionError(
            f"A chunk of {horizon} actions with {dim} numbers each has {horizon * dim} in all, "
            f"but {len(message.actions)} came."
        )
    if abs(message.dt * CONTROL_HZ - 1.0) > 0.01:
        raise ActionError(f"A chunk's actions should last 1/{CONTROL_HZ} s each, but dt is {message.dt:.4g} s.")
    if not 1 <= message.execute_steps <= horizon:
        raise ActionError(f"Of {horizon} actions in a chunk, {message.execute_steps} cannot be executed.")
    actions = check_chunk(np.asarray(message.actions, float).reshape(horizon, dim), message.action_space)
    return PlannedChunk(
        str(message.episode_id), int(message.step), str(message.action_space), actions, int(message.execute_steps)
    )
