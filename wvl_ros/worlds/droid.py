"""DROID's conventions: names, constants, the four action spaces and the conversions between them.

Constants are those of droid-dataset/droid (`robot_env.py`, `robot_ik/robot_ik_solver.py`). A pose is
`cartesian_position`: flange (panda_link8) xyz in m, then extrinsic xyz Euler angles in rad. The gripper is 0 open ..
1 closed.
"""

from __future__ import annotations

import logging
import math
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wvl_ros.errors import ActionError, UnknownNameError
from wvl_ros.worlds import kinematics

Array = NDArray[np.float64]
ActionSpace = Literal["cartesian_position", "cartesian_velocity", "joint_position", "joint_velocity"]

log = logging.getLogger(__name__)

CONTROL_HZ = 15
CAMERAS = ("exterior_image_1_left", "exterior_image_2_left", "wrist_image_left")
ACTION_SPACES: tuple[ActionSpace, ...] = get_args(ActionSpace)
ACTION_DIMS: dict[str, int] = {
    "cartesian_position": 7,
    "cartesian_velocity": 7,
    "joint_position": 8,
    "joint_velocity": 8,
}

MAX_JOINT_DELTA = 0.2  # rad a step, the largest of the seven
MAX_LINEAR_DELTA = 0.075  # m a step, L2 norm
MAX_ROTATION_DELTA = 0.15  # rad a step, L2 norm
MAX_GRIPPER_DELTA = 0.25  # a step, gripper velocity spaces only

RESET_JOINTS = np.array([0.0, -np.pi / 5, 0.0, -4 * np.pi / 5, 0.0, 3 * np.pi / 5, 0.0])
JOINT_NAMES = tuple(f"fr3_joint{i}" for i in range(1, 8))
FINGER_NAMES = ("fr3_finger_joint1", "fr3_finger_joint2")
FINGER_TRAVEL = 0.04  # m, each finger, fully open

WORKSPACE_LOWER = np.array([-1.0, -1.0, -1.0])  # m, DROID's box around the base
WORKSPACE_UPPER = np.array([1.0, 1.0, 1.0])


def check_action(action: ArrayLike, space: str) -> Array:
    """One action as float64 (D,), fit to execute: refused when malformed, clipped with a warning when out of range.

    Args:
        action: D numbers; D is 7 in the Cartesian spaces and 8 in the joint spaces, the last is the gripper's
            position 0..1.
        space: one of `ACTION_SPACES`.

    Raises:
        UnknownNameError: no such action space.
        ActionError: wrong length, or NaN or infinity among the numbers.
    """
    return check_chunk(np.asarray(action, float)[None], space)[0]


def check_chunk(actions: ArrayLike, space: str) -> Array:
    """T actions (T, D) as float64, checked and clipped like `check_action`."""
    if space not in ACTION_DIMS:
        raise UnknownNameError("action space", space, ACTION_SPACES)
    array = np.asarray(actions, float)
    dim = ACTION_DIMS[space]
    if array.ndim != 2 or array.shape[1] != dim:
        got = "x".join(str(n) for n in array.shape)
        raise ActionError(
            f"An action of '{space}' has {dim} numbers (the last is the gripper), but the shape is {got}."
        )
    if not np.isfinite(array).all():
        raise ActionError(f"An action of '{space}' holds NaN or infinity and was refused; check the policy's output.")
    lower, upper = action_bounds(space)
    clipped = np.clip(array, lower, upper)
    excess = np.abs(array - clipped).max(initial=0.0)
    if excess > 1e-6:
        worst = int(np.argmax(np.abs(array - clipped).max(axis=0)))
        log.warning("Action of '%s' out of range by %.3g in dimension %d: clipped.", space, excess, worst)
    return clipped


def action_bounds(space: str) -> tuple[Array, Array]:
    """Lower and upper bound (D,) of an action space, the gripper last."""
    if space == "joint_position":
        return np.append(kinematics.JOINT_LOWER, 0.0), np.append(kinematics.JOINT_UPPER, 1.0)
    if space == "cartesian_position":
        turn = np.full(3, 2 * np.pi)
        return np.concatenate([WORKSPACE_LOWER, -turn, [0.0]]), np.concatenate([WORKSPACE_UPPER, turn, [1.0]])
    if space in ACTION_DIMS:
        dim = ACTION_DIMS[space]
        return np.append(-np.ones(dim - 1), 0.0), np.ones(dim)
    raise UnknownNameError("action space", space, ACTION_SPACES)


def euler_to_matrix(euler: ArrayLike) -> Array:
    """Rotation (..., 3, 3) of extrinsic xyz Euler angles (..., 3) in rad: Rz(yaw) Ry(pitch) Rx(roll)."""
    euler = np.asarray(euler, float)
    (cr, cp, cy), (sr, sp, sy) = np.moveaxis(np.cos(euler), -1, 0), np.moveaxis(np.sin(euler), -1, 0)
    rows = (
        (cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr),
        (sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr),
        (-sp, cp * sr, cp * cr),
    )
    return np.moveaxis(np.array(rows), (0, 1), (-2, -1))


def matrix_to_euler(matrix: ArrayLike) -> Array:
    """Extrinsic xyz Euler angles (3,) in rad of one rotation (3, 3); at gimbal lock the yaw is 0."""
    m = np.asarray(matrix, float)
    level = math.hypot(m[0, 0], m[1, 0])
    if level > 1e-7:
        return np.array([math.atan2(m[2, 1], m[2, 2]), math.atan2(-m[2, 0], level), math.atan2(m[1, 0], m[0, 0])])
    return np.array([math.atan2(-m[1, 2], m[1, 1]), math.atan2(-m[2, 0], level), 0.0])


def rotvec_to_matrix(rotvec: ArrayLike) -> Array:
    """Rotation (3, 3) of a rotation vector (3,) in rad (Rodrigues' formula)."""
    x, y, z = vector = np.asarray(rotvec, float)
    angle = math.sqrt(vector @ vector)
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    first, second = (1.0, 0.5) if angle < 1e-8 else (math.sin(angle) / angle, (1.0 - math.cos(angle)) / angle**2)
    return np.asarray(np.eye(3) + first * cross + second * (cross @ cross))


def forward_kinematics(joints: ArrayLike) -> Array:
    """`cartesian_position` (6,) of a joint vector (7,) in rad."""
    position, rotation = kinematics.flange_pose(np.asarray(joints, float))
    return np.concatenate([position, matrix_to_euler(rotation)])


def inverse_kinematics(pose: ArrayLike, start: ArrayLike, iterations: int = 20) -> Array:
    """Joint vector (7,) in rad near `start` (7,) whose flange comes closest to `cartesian_position` `pose` (6,)."""
    pose = np.asarray(pose, float)
    return kinematics.inverse_kinematics(
        pose[:3], euler_to_matrix(pose[3:6]), np.asarray(start, float), RESET_JOINTS, iterations=iterations
    )


def pose_velocity(start: ArrayLike, target: ArrayLike) -> Array:
    """Normalised `cartesian_velocity` (6,) that leads from one pose (6,) to the next in one control step, unclipped."""
    start, target = np.asarray(start, float), np.asarray(target, float)
    turn = kinematics.rotation_error(euler_to_matrix(start[3:6]), euler_to_matrix(target[3:6]))
    return np.concatenate([(target[:3] - start[:3]) / MAX_LINEAR_DELTA, turn / MAX_ROTATION_DELTA])


def move_pose(pose: ArrayLike, velocity: ArrayLike) -> Array:
    """The pose (6,) one step of normalised `cartesian_velocity` (6,) after `pose` (6,), norm-clipped as DROID does."""
    pose, velocity = np.asarray(pose, float), np.asarray(velocity, float)
    linear = velocity[:3] / max(1.0, float(np.linalg.norm(velocity[:3]))) * MAX_LINEAR_DELTA
    angular = velocity[3:6] / max(1.0, float(np.linalg.norm(velocity[3:6]))) * MAX_ROTATION_DELTA
    turned = rotvec_to_matrix(angular) @ euler_to_matrix(pose[3:6])
    return np.concatenate([pose[:3] + linear, matrix_to_euler(turned)])


def limit_pose(pose: ArrayLike, previous: ArrayLike) -> Array:
    """`pose` (6,), at most one control step (`MAX_LINEAR_DELTA`, `MAX_ROTATION_DELTA`) away from `previous` (6,)."""
    velocity = pose_velocity(previous, pose)
    if np.linalg.norm(velocity[:3]) <= 1.0 and np.linalg.norm(velocity[3:]) <= 1.0:
        return np.array(pose, float)
    return move_pose(previous, velocity)


def convert_chunk(
    actions: ArrayLike, source: str, target: str, joint_position: ArrayLike, cartesian_position: ArrayLike
) -> Array:
    """T actions of one space as T actions of another, once, at the chunk's start.

    Velocities are integrated from the given configuration, poses and joint positions are differenced from it. Give the
    last *commanded* configuration where there is one: from the measured one, the servo's lag would add up.

    Args:
        actions: (T, D) of space `source`, the gripper (0..1) last.
        source, target: two of `ACTION_SPACES`.
        joint_position: (7,) rad, the configuration before the first action.
        cartesian_position: (6,) its flange pose.

    Returns:
        (T, D') of space `target`, checked and clipped to its range.
    """
    array = check_chunk(actions, source)
    if source == target:
        return array
    if target not in ACTION_DIMS:
        raise UnknownNameError("action space", target, ACTION_SPACES)
    body, gripper = array[:, :-1], array[:, -1:]
    joints, pose = np.asarray(joint_position, float), np.asarray(cartesian_position, float)
    if source.startswith("joint") and target.startswith("joint"):
        body = _joint_targets(body, source, joints) if target == "joint_position" else _joint_velocities(body, joints)
        return check_chunk(np.hstack([body, gripper]), target)
    if source.startswith("joint"):
        poses = np.stack([forward_kinematics(q) for q in _joint_targets(body, source, joints)])
    elif source == "cartesian_velocity":
        poses = _integrate(body, pose)
    else:
        poses = body
    if target == "cartesian_position":
        return check_chunk(np.hstack([poses, gripper]), target)
    if target == "cartesian_velocity":
        return check_chunk(np.hstack([_pose_velocities(poses, pose), gripper]), target)
    targets = np.empty((len(poses), 7))
    current = joints
    for i, row in enumerate(poses):
        current = targets[i] = inverse_kinematics(row, current)
    body = targets if target == "joint_position" else _joint_velocities(targets, joints)
    return check_chunk(np.hstack([body, gripper]), target)


def joint_targets(joint_position: ArrayLike, velocities: ArrayLike) -> Array:
    """The joints (T, 7) that DROID's robot aims at, each from its own measured joints (T, 7) and velocity (T, 7).

    DROID's `RobotIKSolver` limits the largest of the seven to 1, scales by `MAX_JOINT_DELTA` and adds the measured.
    """
    body = np.asarray(velocities, float)
    scale = np.maximum(1.0, np.abs(body).max(axis=1, keepdims=True))
    targets = np.asarray(joint_position, float) + body / scale * MAX_JOINT_DELTA
    return np.clip(targets, kinematics.JOINT_LOWER, kinematics.JOINT_UPPER)


def _joint_targets(body: Array, source: str, joints: Array) -> Array:
    if source == "joint_position":
        return body
    scale = np.maximum(1.0, np.abs(body).max(axis=1, keepdims=True))
    targets = joints + np.cumsum(body / scale * MAX_JOINT_DELTA, axis=0)
    return np.clip(targets, kinematics.JOINT_LOWER, kinematics.JOINT_UPPER)


def _joint_velocities(targets: Array, joints: Array) -> Array:
    return np.diff(np.vstack([joints, targets]), axis=0) / MAX_JOINT_DELTA


def _integrate(velocities: Array, pose: Array) -> Array:
    poses = np.empty((len(velocities), 6))
    for i, velocity in enumerate(velocities):
        pose = poses[i] = move_pose(pose, velocity)
    return poses


def _pose_velocities(poses: Array, pose: Array) -> Array:
    before = np.vstack([pose, poses[:-1]])
    return np.stack([pose_velocity(a, b) for a, b in zip(before, poses, strict=True)])
