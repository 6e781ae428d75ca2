"""Rollouts in a batch: reproducible, independent, and ended when they should be."""

from __future__ import annotations

import pytest
import torch

from wvl_ros.errors import ConfigError
from wvl_ros.world_model.model import WorldModel
from wvl_ros.world_model.rollout import Rollouts, first_kinematics


def _model(**settings: object) -> WorldModel:
    torch.manual_seed(0)
    model = WorldModel(channels=16, condition_dim=32, vocabulary=["red"], **settings)
    torch.nn.init.normal_(model.to_frame.weight, std=0.05)  # so that the noise shows
    return model.eval()


def _start(rollouts: Rollouts, seeds: list[int]) -> torch.Tensor:
    batch = len(seeds)
    pose = torch.tensor([[0.5, 0.0, 0.4, 3.1, 0.0, 0.0]]).repeat(batch, 1)
    command = torch.cat([pose, torch.zeros(batch, 1)], 1)
    frames = torch.zeros(batch, 144, 16, 16)
    rollouts.start(frames, first_kinematics(pose, command[:, 6:], command), ["red"] * batch, torch.zeros(batch), seeds)
    command[:, 0] += 0.03
    return command[:, None].repeat(1, 3, 1)


def test_the_same_seed_gives_the_same_frames_and_another_seed_others() -> None:
    rollouts = Rollouts(_model(), bfloat16=False, steps=2)
    frames = []
    for _ in range(2):
        actions = _start(rollouts, [1, 2, 1])
        frames.append([rollouts.advance(actions).frame for _ in range(2)][-1])
    assert torch.equal(frames[0], frames[1])
    assert torch.allclose(frames[0][0], frames[0][2], atol=1e-5)
    assert not torch.allclose(frames[0][0], frames[0][1], atol=1e-3)


def test_stopped_rollouts_stand_still_and_do_not_disturb_the_others() -> None:
    rollouts = Rollouts(_model(), bfloat16=False)
    actions = _start(rollouts, [1, 2])
    both = [rollouts.advance(actions) for _ in range(3)][-1]
    actions = _start(rollouts, [1, 2])
    first = rollouts.advance(actions)
    rollouts.stop(torch.tensor([False, True]))
    later = [rollouts.advance(actions) for _ in range(2)][-1]
    assert torch.equal(later.frame[1], first.frame[1])
    assert torch.equal(later.kinematics[1], first.kinematics[1])
    assert torch.allclose(later.frame[0], both.frame[0], atol=1e-5)


def test_success_needs_a_run_of_frames_and_ends_the_rollout() -> None:
    model = _model(success_threshold=0.0, success_frames=2)
    rollouts = Rollouts(model)
    actions = _start(rollouts, [1])
    rollouts.advance(actions)
    assert not rollouts.success[0]
    second = rollouts.advance(actions)
    assert rollouts.success[0]
    assert torch.equal(rollouts.advance(actions).frame, second.frame)


def test_the_arm_goes_where_it_is_told_before_the_frame_is_drawn() -> None:
    rollouts = Rollouts(_model())
    actions = _start(rollouts, [1])
    assert torch.allclose(rollouts.move(actions[:, 0])[0, :3], actions[0, 0, :3], atol=1e-5)
    assert not rollouts.frame_due
    with pytest.raises(ConfigError, match="3 control steps"):
        rollouts.imagine()
    with pytest.raises(ConfigError, match="at least one"):
        Rollouts(_model(), steps=0)
