"""A call of the model, its loss, and LoRA on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from wvl_ros.errors import ConfigError
from wvl_ros.world_model import poses
from wvl_ros.world_model.chunks import ChunkRollouts
from wvl_ros.world_model.cosmos import flow
from wvl_ros.world_model.cosmos.losses import Batch, loss
from wvl_ros.world_model.cosmos.model import CosmosWorldModel
from wvl_ros.world_model.heads import Truth
from wvl_ros.world_model.lora import add_lora, fuse_lora, load_lora, save_lora
from wvl_ros.world_model.rollout import first_kinematics


def _start(rollouts: ChunkRollouts, seeds: list[int]) -> torch.Tensor:
    pose = torch.tensor([[0.5, 0.0, 0.4, 3.1, 0.0, 0.0]]).repeat(len(seeds), 1)
    command = torch.cat([pose, torch.zeros(len(seeds), 1)], 1)
    views = torch.randint(0, 255, (1, 3, 16, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    rollouts.start(
        views.repeat(len(seeds), 1, 1, 1, 1),
        first_kinematics(pose, command[:, 6:], command),
        ["go"] * len(seeds),
        torch.zeros(len(seeds)),
        seeds,
    )
    command[:, 0] += 0.02
    return command


@pytest.mark.parametrize("history", [0, 4])
def test_calls_follow_each_other(make_cosmos: Callable[..., CosmosWorldModel], history: int) -> None:
    rollouts = ChunkRollouts(make_cosmos(history_frames=history))
    action = _start(rollouts, [1, 2])
    for _ in range(2):
        while not rollouts.frame_due:
            rollouts.move(action)
        frames = rollouts.imagine()
    assert frames.views.shape == (2, 4, 3, 16, 32, 3)
    assert frames.success_probability.shape == (2, 4)
    assert torch.equal(rollouts.memory["recent"], frames.views[:, -max(1, history) :])
    assert not torch.equal(frames.views[0], frames.views[1])


def test_frames_that_are_given_stay(make_cosmos: Callable[..., CosmosWorldModel]) -> None:
    model = make_cosmos()
    x, given = torch.randn(model.noise_shape)[None], torch.randn(1, 16, 2, *model.latent_size)
    with torch.no_grad():
        drawn = model(x, torch.tensor([5.0]), given, torch.zeros(1, 4, 7), torch.zeros(1, 10), model.embed(["go"]))
    assert torch.equal(drawn[:, :, :2], given)
    sampler = flow.scheduler(4, torch.device("cpu"))
    assert sampler.sigmas.tolist() == pytest.approx([80, 9.7, 0.47, 0.002, 0.002], rel=0.02)


def test_relative_poses_lead_back_to_the_absolute_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    path = torch.rand(2, 4, 7, generator=generator) - 0.5
    relative = poses.relative(path)
    position, rotation = path[:, 0, :3], poses.euler_to_matrix(path[:, 0, 3:6])
    for t in range(3):
        step = relative[:, t] / poses.RELATIVE_SCALE
        position = position + (rotation @ step[:, :3, None])[..., 0]
        rotation = rotation @ poses.euler_to_matrix(step[:, 3:6])
    assert torch.allclose(position, path[:, -1, :3], atol=1e-5)
    assert torch.allclose(poses.matrix_to_euler(rotation), path[:, -1, 3:6], atol=1e-4)
    assert torch.equal(relative[..., 6], path[:, 1:, 6])


def test_one_loss_and_lora(make_cosmos: Callable[..., CosmosWorldModel], tmp_path: Path) -> None:
    model = make_cosmos()
    state = torch.rand(2, 4, 10)
    truth = Truth(state, state + 0.01, torch.eye(4)[:2], torch.ones(2, 4))
    text = model.embed(["", ""])
    batch = Batch(torch.randn(2, *model.noise_shape), torch.rand(2, 5, 7), torch.rand(2, 10), text, truth)
    trained = add_lora(model, rank=2)
    parts = loss(model, batch, generator=torch.Generator().manual_seed(1))
    assert parts["loss"] == loss(model, batch, generator=torch.Generator().manual_seed(1))["loss"]
    parts["loss"].backward()
    assert model.transformer.action_embedder_B_D.fc1.weight.grad.abs().sum() > 0
    assert model.heads.out[-1].weight.grad.abs().sum() > 0
    with torch.no_grad():
        for parameter in trained:
            parameter.add_(0.1)
        given = torch.randn(1, 16, 2, *model.latent_size)
        inputs = (
            torch.randn(model.noise_shape)[None],
            torch.tensor([1.0]),
            given,
            torch.rand(1, 4, 7),
            torch.rand(1, 10),
        )
        tuned = model(*inputs, text[:1])
        save_lora(model, tmp_path)
        fresh = make_cosmos()
        assert not torch.allclose(fresh(*inputs, text[:1]), tuned, atol=1e-3)
        load_lora(fresh, tmp_path)
        assert torch.allclose(fresh(*inputs, text[:1]), tuned, atol=1e-5)
        fuse_lora(fresh)
        assert torch.allclose(fresh(*inputs, text[:1]), tuned, atol=1e-3)
    assert list(fresh.state_dict()) == list(make_cosmos().state_dict())


def test_settings_that_do_not_fit(make_cosmos: Callable[..., CosmosWorldModel]) -> None:
    with pytest.raises(ConfigError, match="history_frames"):
        make_cosmos(history_frames=3)
    with pytest.raises(ConfigError, match="no multiple of 16"):
        make_cosmos(image_height=24)
