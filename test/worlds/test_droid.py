"""DROID's conventions: rotations, action checks, and all sixteen conversions between action spaces."""

import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.transform import Rotation

from wvl_ros.errors import ActionError, UnknownNameError
from wvl_ros.worlds import droid

START = droid.RESET_JOINTS
POSE = droid.forward_kinematics(START)
angles = arrays(float, 3, elements=st.floats(-3.1, 3.1))
velocities = arrays(float, (5, 6), elements=st.floats(-0.55, 0.55))


@given(euler=angles)
def test_euler_angles_are_scipys_extrinsic_xyz(euler: np.ndarray) -> None:
    matrix = droid.euler_to_matrix(euler)
    assert np.allclose(matrix, Rotation.from_euler("xyz", euler).as_matrix(), atol=1e-12)
    assert np.allclose(droid.euler_to_matrix(droid.matrix_to_euler(matrix)), matrix, atol=1e-6)


@given(rotvec=angles)
def test_rotation_vectors_are_scipys(rotvec: np.ndarray) -> None:
    assert np.allclose(droid.rotvec_to_matrix(rotvec), Rotation.from_rotvec(rotvec).as_matrix(), atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(body=velocities, gripper=arrays(float, 5, elements=st.floats(0, 1)), target=st.sampled_from(droid.ACTION_SPACES))
def test_a_chunk_survives_the_way_through_any_space(body: np.ndarray, gripper: np.ndarray, target: str) -> None:
    """Velocity -> any space -> poses gives the poses that velocity -> poses gives."""
    chunk = np.column_stack([body * 0.4, gripper])
    poses = droid.convert_chunk(chunk, "cartesian_velocity", "cartesian_position", START, POSE)
    there = droid.convert_chunk(chunk, "cartesian_velocity", target, START, POSE)
    back = droid.convert_chunk(there, target, "cartesian_position", START, POSE)
    assert there.shape == (5, droid.ACTION_DIMS[target])
    assert np.abs(back[:, :3] - poses[:, :3]).max() < 2e-3
    turn = droid.euler_to_matrix(back[:, 3:6]) - droid.euler_to_matrix(poses[:, 3:6])
    assert np.abs(turn).max() < 1e-2
    assert np.allclose(back[:, -1], gripper)


@settings(max_examples=40, deadline=None)
@given(body=arrays(float, (4, 7), elements=st.floats(-0.4, 0.4)))
def test_joint_velocities_and_positions_invert_each_other(body: np.ndarray) -> None:
    chunk = np.column_stack([body, np.zeros(4)])
    positions = droid.convert_chunk(chunk, "joint_velocity", "joint_position", START, POSE)
    back = droid.convert_chunk(positions, "joint_position", "joint_velocity", START, POSE)
    inside = (np.abs(positions[:, :7]) < 2.6).all() and (positions[:, 3] < -0.2).all() and (positions[:, 5] < 4.4).all()
    if inside:
        assert np.allclose(back, chunk, atol=1e-9)


def test_a_step_is_never_longer_than_droids() -> None:
    moved = droid.move_pose(POSE, [1.0, 1.0, 1.0, 0.0, 0.0, 0.0])
    assert np.linalg.norm(moved[:3] - POSE[:3]) == pytest.approx(droid.MAX_LINEAR_DELTA)
    far = POSE + np.array([0.5, 0, 0, 0, 0, 1.0])
    limited = droid.limit_pose(far, POSE)
    assert np.linalg.norm(limited[:3] - POSE[:3]) == pytest.approx(droid.MAX_LINEAR_DELTA)
    assert np.linalg.norm(droid.pose_velocity(POSE, limited)[3:]) == pytest.approx(1.0)
    close = POSE + np.array([0.01, 0, 0, 0, 0, 0.1])
    assert np.array_equal(droid.limit_pose(close, POSE), close)


@pytest.mark.parametrize(
    ("action", "words"),
    [
        (np.zeros(6), "has 7 numbers"),
        (np.full(7, np.nan), "NaN"),
        (np.full(7, np.inf), "infinity"),
        (np.zeros(8), "has 7 numbers"),
    ],
)
def test_malformed_actions_are_refused_in_one_sentence(action: np.ndarray, words: str) -> None:
    with pytest.raises(ActionError, match=words):
        droid.check_action(action, "cartesian_position")


def test_actions_out_of_range_are_clipped_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        clipped = droid.check_action([2.0, 0, 0, 0, 0, 0, 1.5], "cartesian_velocity")
    assert (clipped[0], clipped[-1]) == (1.0, 1.0)
    assert "out of range" in caplog.text


def test_unknown_action_spaces_are_named_with_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match=r"'torque'.*cartesian_position, cartesian_velocity"):
        droid.check_action(np.zeros(7), "torque")
