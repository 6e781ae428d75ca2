"""The batched kinematics agree with DROID's conventions, which the worlds use."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from wvl_ros.world_model.kinematics import (
    Kinematics,
    euler_to_matrix,
    matrix_to_euler,
    matrix_to_rotvec,
    mirrored_actions,
    rotvec_to_matrix,
)
from wvl_ros.worlds import droid

angles = arrays(float, 3, elements=st.floats(-3.1, 3.1))
motions = arrays(np.float32, (8, 7), elements=st.floats(-0.5, 0.5, width=32))


@given(angles)
def test_euler_angles_are_droids(euler: np.ndarray) -> None:
    assert np.allclose(euler_to_matrix(torch.tensor(euler)[None])[0].numpy(), droid.euler_to_matrix(euler), atol=1e-12)


@given(arrays(float, 3, elements=st.floats(-1.7, 1.7)))
def test_rotation_vectors_come_back(vector: np.ndarray) -> None:
    again = matrix_to_rotvec(rotvec_to_matrix(torch.tensor(vector)[None]))[0].numpy()
    assert np.allclose(again, vector, atol=1e-7)


def test_packing_loses_nothing() -> None:
    packed = torch.randn(4, 39)
    assert torch.equal(Kinematics.unpack(packed).pack(), packed)


@given(angles)
def test_euler_angles_come_back(euler: np.ndarray) -> None:
    matrix = euler_to_matrix(torch.tensor(euler)[None])
    assert torch.allclose(euler_to_matrix(matrix_to_euler(matrix)), matrix, atol=1e-9)


@given(motions)
def test_a_mirror_shows_what_an_arm_does_on_the_other_side(motion: np.ndarray) -> None:
    poses = torch.tensor([0.5, 0.1, 0.4, 3.0, 0.1, 0.3, 0.5]) + torch.tensor(motion).cumsum(0) * 0.2
    poses[:, 6] = poses[:, 6].clamp(0, 1)
    every = torch.ones(len(poses), dtype=torch.bool)
    k = Kinematics.recorded(poses[:, :6], poses[:, 6:], poses)
    shown = k.mirrored(every)
    # The TCP changes sides, the hand's x axis too; its left finger is where the right one was.
    across = torch.tensor([1.0, -1.0, 1.0] * 3 + [1.0])
    assert torch.allclose(shown.state(), k.state() * across, atol=1e-5)
    assert torch.allclose(shown.mirrored(every).pack(), k.pack(), atol=1e-5)
    # To mirror what was recorded is to record the mirrored poses.
    other = mirrored_actions(poses, every)
    again = Kinematics.recorded(other[:, :6], other[:, 6:], other)
    assert torch.allclose(again.pack(), shown.pack(), atol=1e-4)
    assert torch.equal(k.mirrored(~every).pack(), k.pack())
