"""The arm's kinematics against its definition, and against MuJoCo's model of the same arm."""

import mujoco
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from wvl_ros.worlds import droid, kinematics, scene
from wvl_ros.worlds.tasks import TASKS

joints = arrays(float, 7, elements=st.floats(0.0, 1.0)).map(
    lambda u: kinematics.JOINT_LOWER + u * (kinematics.JOINT_UPPER - kinematics.JOINT_LOWER)
)


@pytest.fixture(scope="module")
def model() -> mujoco.MjModel:
    return scene.build(TASKS["pick_place"].layout("single"))


@settings(max_examples=50, deadline=None)
@given(q=joints)
def test_flange_pose_agrees_with_mujoco(model: mujoco.MjModel, q: np.ndarray) -> None:
    data = mujoco.MjData(model)
    data.qpos[:7] = q
    mujoco.mj_kinematics(model, data)
    position, rotation = kinematics.flange_pose(q)
    hand = model.body("hand").id  # MuJoCo's hand sits on the flange, turned by -45 degrees about z
    assert np.allclose(position, data.xpos[hand], atol=1e-6)
    turned = rotation @ droid.rotvec_to_matrix([0.0, 0.0, scene.HAND_YAW])
    assert np.allclose(turned, data.xmat[hand].reshape(3, 3), atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(q=joints)
def test_jacobian_is_the_derivative_of_the_pose(q: np.ndarray) -> None:
    position, rotation, jacobian = kinematics.flange_jacobian(q)
    for i in range(7):
        moved, turned = kinematics.flange_pose(q + 1e-6 * np.eye(7)[i])
        assert np.allclose((moved - position) / 1e-6, jacobian[:3, i], atol=1e-4)
        assert np.allclose(kinematics.rotation_error(rotation, turned) / 1e-6, jacobian[3:, i], atol=1e-4)


@settings(max_examples=50, deadline=None)
@given(delta=arrays(float, 7, elements=st.floats(-0.25, 0.25)))
def test_inverse_kinematics_meets_reachable_poses(delta: np.ndarray) -> None:
    goal = np.clip(droid.RESET_JOINTS + delta, kinematics.JOINT_LOWER, kinematics.JOINT_UPPER)
    pose = droid.forward_kinematics(goal)
    found = droid.forward_kinematics(droid.inverse_kinematics(pose, droid.RESET_JOINTS, iterations=50))
    assert np.abs(found[:3] - pose[:3]).max() < 1e-3


def test_inverse_kinematics_of_an_unreachable_pose_stays_within_the_limits() -> None:
    found = droid.inverse_kinematics([3.0, 0.0, 0.5, np.pi, 0.0, 0.0], droid.RESET_JOINTS)
    assert np.isfinite(found).all()
    assert np.array_equal(found, np.clip(found, kinematics.JOINT_LOWER, kinematics.JOINT_UPPER))


def test_rotation_error_of_half_turns() -> None:
    for axis in np.array([[1.0, 0, 0], [0, -1, 0], [0.6, 0.8, 0]]):
        half_turn = 2 * np.outer(axis, axis) - np.eye(3)
        error = kinematics.rotation_error(np.eye(3), half_turn)
        assert np.allclose(droid.rotvec_to_matrix(error), half_turn, atol=1e-9)
