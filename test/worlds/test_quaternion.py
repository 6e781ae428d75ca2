"""Quaternions on the wire mean the same rotation as DROID's Euler angles."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from wvl_ros.worlds.quaternion import euler_to_quaternion, quaternion_to_euler

angle = st.floats(-np.pi, np.pi)


@given(roll=angle, pitch=st.floats(-1.5, 1.5), yaw=angle)
def test_they_agree_with_scipy_and_come_back(roll, pitch, yaw):
    euler = [roll, pitch, yaw]
    quaternion = euler_to_quaternion(euler)
    expected = Rotation.from_euler("xyz", euler)
    np.testing.assert_allclose(abs(quaternion @ expected.as_quat()), 1.0, atol=1e-12)
    again = Rotation.from_euler("xyz", quaternion_to_euler(2.0 * quaternion))
    assert (again * expected.inv()).magnitude() < 1e-6
