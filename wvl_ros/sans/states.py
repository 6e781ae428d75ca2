"""The robot's state in sensor_msgs/JointState and geometry_msgs/PoseStamped, whoever made the message."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from wvl_ros.errors import ObservationError
from wvl_ros.worlds.droid import FINGER_NAMES, FINGER_TRAVEL, JOINT_NAMES
from wvl_ros.worlds.quaternion import quaternion_to_euler

_NAMES = (*JOINT_NAMES, FINGER_NAMES[0])


def read_joint_state(message: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """`joint_position` (7,) rad and `gripper_position` (1,), 0 open .. 1 closed; by joint names, else the first eight.

    Raises:
        ObservationError: fewer than seven joints and a finger.
    """
    names, values = list(message.name), np.asarray(message.position, float)
    if all(name in names for name in _NAMES):
        values = values[[names.index(name) for name in _NAMES]]
    if len(values) < len(_NAMES):
        raise ObservationError(f"A joint state needs seven joints and a finger, but has {len(values)} positions.")
    return values[:7], np.clip(1.0 - values[7:8] / FINGER_TRAVEL, 0.0, 1.0)


def read_pose(message: Any) -> NDArray[np.float64]:
    """`cartesian_position` (6,): xyz in m, extrinsic xyz Euler angles in rad."""
    position, turn = message.pose.position, message.pose.orientation
    return np.array([position.x, position.y, position.z, *quaternion_to_euler([turn.x, turn.y, turn.z, turn.w])])
