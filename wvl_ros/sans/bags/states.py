"""The robot's state in sensor_msgs/JointState and geometry_msgs/PoseStamped, whoever made the message."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wvl_ros.errors import ObservationError
from wvl_ros.worlds.droid import FINGER_NAMES, FINGER_TRAVEL, JOINT_NAMES
from wvl_ros.worlds.quaternion import quaternion_to_euler

_NAMES = (*JOINT_NAMES, FINGER_NAMES[0])


def named_positions(message: Any, names: Sequence[str]) -> NDArray[np.float64]:
    """Positions (len(names),) of the named joints of a sensor_msgs/JointState, whatever their order there.

    Raises:
        ObservationError: a name is missing, or there are fewer positions than names.
    """
    there, values = list(message.name), np.asarray(message.position, float)
    missing = next((name for name in names if name not in there), None)
    if missing is not None:
        raise ObservationError(f"A joint state lacks the joint '{missing}'; it has: {', '.join(there) or 'no names'}.")
    if len(values) != len(there):
        raise ObservationError(f"A joint state has {len(there)} names, but {len(values)} positions.")
    return values[[there.index(name) for name in names]]


def read_joint_state(message: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """`joint_position` (7,) rad and `gripper_position` (1,), 0 open .. 1 closed, by the FR3's joint names.

    Raises:
        ObservationError: one of the seven joints or the finger is missing.
    """
    values = named_positions(message, _NAMES)
    return values[:7], np.clip(1.0 - values[7:8] / FINGER_TRAVEL, 0.0, 1.0)


def read_pose(message: Any) -> NDArray[np.float64]:
    """`cartesian_position` (6,): xyz in m, extrinsic xyz Euler angles in rad."""
    position, turn = message.pose.position, message.pose.orientation
    return np.array([position.x, position.y, position.z, *quaternion_to_euler([turn.x, turn.y, turn.z, turn.w])])
