"""The servo's lag: commands are limited as in every world, and what was recorded is found again."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from wvl_ros.world_model.kinematics import Kinematics, hand_state, mirrored_actions
from wvl_ros.world_model.tracking import Tracking, fit_linear
from wvl_ros.worlds import droid

nudges = arrays(float, 7, elements=st.floats(-0.3, 0.3))


def _at(pose: np.ndarray) -> Kinematics:
    row = torch.tensor(pose)[None]
    return Kinematics.at_rest(row[:, :6], row[:, 6:], row)


@settings(max_examples=50)
@given(nudges)
def test_a_far_command_is_shortened_as_in_every_world(nudge: np.ndarray) -> None:
    start = np.array([0.5, 0.1, 0.4, 3.0, -0.2, 0.3, 0.0])
    target = start + nudge * np.array([1, 1, 1, 2, 2, 2, 0])
    after = Tracking(droid.MAX_LINEAR_DELTA, droid.MAX_ROTATION_DELTA, None).command(
        _at(start), torch.tensor(target)[None], torch.ones(1)
    )
    limited = droid.limit_pose(target[:6], start[:6])
    assert np.allclose(after.commanded_position[0].numpy(), limited[:3], atol=1e-9)
    assert np.allclose(after.commanded_rotation[0].numpy(), droid.euler_to_matrix(limited[3:]), atol=1e-7)


def test_no_command_goes_into_the_table() -> None:
    start = np.array([0.5, 0.0, 0.16, np.pi, 0.0, 0.0, 0.0])
    down = start - np.array([0, 0, 0.07, 0, 0, 0, 0])
    heights = []
    for calibrated in (1.0, 0.0):
        after = Tracking(0.075, 0.15, 0.012).command(_at(start), torch.tensor(down)[None], torch.tensor([calibrated]))
        tcp = hand_state(after.commanded_position, after.commanded_rotation, after.gripper_command)
        heights.append(float(tcp[0, 2]))
    assert abs(heights[0] - 0.012) < 1e-6
    assert heights[1] < 0  # on another rig the table may be anywhere


def test_an_unfitted_servo_follows_its_commands_exactly() -> None:
    tracking = Tracking(0.075, 0.15, None).double()
    start = np.array([0.5, 0.0, 0.4, 3.1, 0.0, 0.0, 0.0])
    target = start + np.array([0.01, -0.02, 0.03, 0.02, 0.01, 0.05, 1.0])
    after = tracking(_at(start), torch.tensor(target)[None], torch.ones(1))
    assert np.allclose(after.position[0].detach().numpy(), target[:3], atol=1e-9)
    assert np.allclose(after.rotation[0].detach().numpy(), droid.euler_to_matrix(target[3:6]), atol=1e-7)


def test_the_lag_of_a_servo_is_found_by_least_squares() -> None:
    generator = torch.Generator().manual_seed(0)
    command = torch.tensor([[0.5, 0.0, 0.4, 3.1, 0.0, 0.0, 0.0]]).double() + 0.02 * torch.randn(
        200, 7, generator=generator, dtype=torch.double
    )
    command[:, 6] = (command[:, 6] > 0).double()
    before = Kinematics.at_rest(command[:, :6], torch.zeros(200, 1).double(), command)
    action = command + 0.01 * torch.randn(200, 7, generator=generator, dtype=torch.double)
    tracking = Tracking(1.0, 1.0, None).double()
    reached = tracking.command(before, action, torch.zeros(200))
    halfway = before.position + 0.5 * (reached.commanded_position - before.position)
    after = reached._replace(
        position=halfway, rotation=reached.commanded_rotation, gripper=reached.gripper_command * 0.4
    )
    fit_linear(tracking, before, action, after, calibrated=False)
    moved = tracking(before, action, torch.zeros(200))
    assert (moved.position - halfway).abs().max() < 2e-4
    assert (moved.gripper - after.gripper).abs().max() < 0.02


def test_a_servo_far_from_where_it_was_fitted_stays_near_its_commands() -> None:
    torch.manual_seed(0)
    servo = Tracking(droid.MAX_LINEAR_DELTA, droid.MAX_ROTATION_DELTA, None)
    for parameter in servo.parameters():
        torch.nn.init.normal_(parameter, std=2.0)
    k = _at(np.array([0.5, 0.1, 0.4, 3.0, -0.2, 0.3, 0.0]))
    k = Kinematics(*(part.float() for part in k))
    for _ in range(100):
        action = torch.cat([k.commanded_position + 0.05, torch.zeros(1, 3), torch.ones(1, 1)], 1)
        k = servo(k, action, torch.ones(1))
        assert (k.position - k.commanded_position).norm() < 0.3
    assert torch.isfinite(k.pack()).all()


def test_a_servo_that_hangs_to_one_side_hangs_to_the_other_in_the_mirror() -> None:
    torch.manual_seed(0)
    servo = Tracking(droid.MAX_LINEAR_DELTA, droid.MAX_ROTATION_DELTA, None)
    for parameter in servo.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    k = Kinematics(*(part.float() for part in _at(np.array([0.5, 0.1, 0.4, 3.0, -0.2, 0.3, 0.0]))))
    action = torch.tensor([[0.52, 0.13, 0.38, 3.05, -0.2, 0.35, 1.0]])
    own, every = torch.ones(1), torch.ones(1, dtype=torch.bool)
    after = servo(k, action, own)
    assert (after.position - after.commanded_position)[0, 1].abs() > 1e-4  # it does hang
    shown = servo(k.mirrored(every), mirrored_actions(action, every), -own)
    assert torch.allclose(shown.pack(), after.mirrored(every).pack(), atol=1e-5)
