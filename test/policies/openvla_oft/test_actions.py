"""Tokens, bounds and conventions of OpenVLA's actions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from wvl_ros.errors import CheckpointError
from wvl_ros.policies.openvla_oft.actions import CONVENTIONS, Bounds, decode, encode
from wvl_ros.worlds import droid

BOUNDS = Bounds(np.array([-0.5, 0.0]), np.array([0.3, 1.0]), np.array([True, False]))


@given(st.floats(-1, 1))
def test_a_token_means_what_was_encoded(action: float) -> None:
    token = encode(action)
    assert 0 <= token <= 255
    assert abs(decode(token) - action) <= 1 / 255 + 1e-12
    published = 32000 - np.digitize(action, np.linspace(-1, 1, 256))  # `ActionTokenizer` of moojink/openvla-oft
    assert token + 31744 == published


@given(st.floats(-5, 5), st.floats(-5, 5))
def test_larger_actions_have_smaller_tokens(first: float, second: float) -> None:
    low, high = sorted((first, second))
    assert encode(low) >= encode(high)
    assert decode(encode(low)) <= decode(encode(high))


def test_the_ends_of_the_vocabulary() -> None:
    np.testing.assert_array_equal(encode([-1, 1, -9, 9]), [255, 0, 255, 0])
    np.testing.assert_allclose(decode([255, 1, 0]), [-254 / 255, 254 / 255, 254 / 255])


@given(st.floats(-0.5, 0.3), st.floats(0, 1))
def test_bounds_come_back(first: float, second: float) -> None:
    numbers = np.array([first, second])
    np.testing.assert_allclose(BOUNDS.restore(BOUNDS.normalise(numbers)), numbers, atol=1e-7)


def test_percentiles_become_one_and_the_gripper_stays() -> None:
    np.testing.assert_allclose(
        BOUNDS.normalise([[-0.5, 0.25], [0.3, 1], [9, 1]]), [[-1, 0.25], [1, 1], [1, 1]], atol=1e-6
    )
    np.testing.assert_allclose(BOUNDS.restore([0, 1]), [-0.1, 1])


def test_bounds_of_another_length_are_refused() -> None:
    for table in ({"q01": [0.0] * 14, "q99": [1.0] * 14}, {"q01": [0.0] * 7}):
        with pytest.raises(CheckpointError, match="The action of 'aloha' should have 7 numbers"):
            Bounds.from_statistics(table, 7, "The action of 'aloha'")


def test_liberos_units_become_metres_and_radians_of_the_flange() -> None:
    action = np.array([0.6, 0, -0.3, 0, 0.1, 0, 1.0])  # robosuite: 0.05 m and 0.5 rad for 1; the gripper open
    velocity = CONVENTIONS["libero"].to_world(action)
    pose = droid.forward_kinematics(droid.RESET_JOINTS)
    moved = droid.move_pose(pose, velocity[:6])
    np.testing.assert_allclose(moved[:3] - pose[:3], [0.03, 0, -0.015], atol=1e-9)
    turned = droid.euler_to_matrix(moved[3:]) @ droid.euler_to_matrix(pose[3:]).T
    np.testing.assert_allclose(Rotation.from_matrix(turned).as_rotvec(), [0, 0.05, 0], atol=1e-9)
    assert velocity[6] == 0
    assert CONVENTIONS["libero"].to_world(action * 0)[6] == 1


def test_droids_velocities_are_ours() -> None:
    action = np.array([0.5, -0.2, 0.1, 0.3, 0, -0.4, 0.2])
    np.testing.assert_allclose(CONVENTIONS["droid"].to_world(action), [*action[:6], 1.0])


@pytest.mark.parametrize("name", CONVENTIONS)
def test_what_is_too_fast_keeps_its_direction_and_what_is_not_comes_back(name: str) -> None:
    convention = CONVENTIONS[name]
    fast = convention.to_world([3.0, -4.0, 0, 0, 3.0, 4.0, 1.0])
    np.testing.assert_allclose(fast[:6], [0.6, -0.8, 0, 0, 0.6, 0.8])
    np.testing.assert_array_equal(droid.check_action(fast, "cartesian_velocity"), fast)
    slow = np.array([0.1, 0.2, 0.3, 0.1, 0.1, 0.2, 1.0])
    np.testing.assert_allclose(convention.to_world(convention.from_world(slow)), slow)


def test_states() -> None:
    pose = droid.forward_kinematics(droid.RESET_JOINTS)  # the hand points down
    np.testing.assert_allclose(CONVENTIONS["droid"].state_of(pose, 0.25), [*pose, 0.25])
    state = CONVENTIONS["libero"].state_of(pose, 0.25)
    np.testing.assert_allclose(state[:3], pose[:3])
    np.testing.assert_allclose(Rotation.from_rotvec(state[3:6]).as_matrix(), droid.euler_to_matrix(pose[3:]), atol=1e-9)
    np.testing.assert_allclose(state[6:], [0.03, -0.03])
    for sign in (1, -1):
        turned = CONVENTIONS["libero"].state_of([0.5, 0, 0.3, sign * (math.pi - 0.1), 0, 0], 0)
        np.testing.assert_allclose(turned[3:6], [math.pi - sign * 0.1, 0, 0], atol=1e-9)
    np.testing.assert_allclose(CONVENTIONS["libero"].state_of(np.zeros(6), 1), 0)
