"""Rollouts of a chunk model: reproducible, independent of each other, and ended when they should be."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from wvl_ros.errors import ConfigError
from wvl_ros.world_model.chunks import ChunkRollouts
from wvl_ros.world_model.imagination import ImaginedFrames
from wvl_ros.world_model.kinematics import Kinematics
from wvl_ros.world_model.rollout import first_kinematics
from wvl_ros.world_model.svd.model import SVDWorldModel


def _start(rollouts: ChunkRollouts, seeds: list[int]) -> torch.Tensor:
    batch, (height, width) = len(seeds), rollouts.image_size
    pose = torch.tensor([[0.5, 0.0, 0.4, 3.1, 0.0, 0.0]]).repeat(batch, 1)
    command = torch.cat([pose, torch.zeros(batch, 1)], 1)
    views = torch.arange(3 * height * width * 3, dtype=torch.uint8).reshape(1, 3, height, width, 3)
    kinematics = first_kinematics(pose, command[:, 6:], command)
    rollouts.start(views.repeat(batch, 1, 1, 1, 1), kinematics, ["go"] * batch, torch.zeros(batch), seeds)
    command[:, 0] += 0.03
    return command


def _call(rollouts: ChunkRollouts, action: torch.Tensor) -> ImaginedFrames:
    while not rollouts.frame_due:
        rollouts.move(action)
    return rollouts.imagine()


def test_a_seed_imagines_the_same_alone_and_among_others(make_svd: Callable[..., SVDWorldModel]) -> None:
    rollouts = ChunkRollouts(make_svd())
    alone = [_call(rollouts, action) for action in [_start(rollouts, [2])] * 2][-1]
    action = _start(rollouts, [1, 2])
    sizes = {name: tensor.shape for name, tensor in rollouts.memory.items()}
    first, both = _call(rollouts, action), _call(rollouts, action)
    assert (alone.views[0].int() - both.views[1].int()).abs().max() <= 1
    assert (both.views[0].int() - both.views[1].int()).abs().max() > 5
    assert both.views.shape == (2, 2, 3, 8, 16, 3)
    assert not torch.equal(first.views, both.views)
    assert both.valid.all()
    # What is remembered does not grow with the horizon.
    assert {name: tensor.shape for name, tensor in rollouts.memory.items()} == sizes
    # The arm is where it was told to be, in the state and in the kinematics.
    assert torch.allclose(both.kinematics[:, 0], action[:, 0], atol=1e-5)
    assert torch.allclose(both.state[:, -1], Kinematics.unpack(both.kinematics).state(), atol=1e-5)


def test_a_stopped_rollout_stands_still(make_svd: Callable[..., SVDWorldModel]) -> None:
    rollouts = ChunkRollouts(make_svd(guidance=2.0))
    action = _start(rollouts, [1, 2])
    first = _call(rollouts, action)
    rollouts.stop(torch.tensor([False, True]))
    later = _call(rollouts, action)
    assert torch.equal(later.views[1], first.views[1, -1:].expand_as(later.views[1]))
    assert torch.equal(later.kinematics[1], first.kinematics[1])
    assert later.valid.tolist() == [[True, True], [False, False]]


def test_frames_after_the_success_repeat_it(make_svd: Callable[..., SVDWorldModel]) -> None:
    rollouts = ChunkRollouts(make_svd(success_threshold=0.0, success_frames=3))
    action = _start(rollouts, [1])
    _call(rollouts, action)
    assert not rollouts.success[0]
    frames = _call(rollouts, action)
    assert rollouts.success[0]
    assert not rollouts.active[0]
    assert frames.valid.tolist() == [[True, False]]
    assert torch.equal(frames.views[:, 0], frames.views[:, 1])


def test_wrong_use_is_refused(make_svd: Callable[..., SVDWorldModel]) -> None:
    with pytest.raises(ConfigError, match="at least two"):
        ChunkRollouts(make_svd(), steps=1)
    rollouts = ChunkRollouts(make_svd())
    action = _start(rollouts, [1])
    with pytest.raises(ConfigError, match="4 control steps"):
        rollouts.imagine()
    for _ in range(4):
        rollouts.move(action)
    with pytest.raises(ConfigError, match="imagine"):
        rollouts.move(action)
    with pytest.raises(ConfigError, match="pixels"):
        rollouts.start(torch.zeros(1, 3, 4, 4, 3, dtype=torch.uint8), rollouts.kinematics, ["go"], torch.zeros(1), [1])
    with pytest.raises(ConfigError, match="tokenizer"):
        make_svd(text=True).embed(["go"])
