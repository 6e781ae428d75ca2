"""Exploration noise: its log-probabilities are exact and its samples have the deviations it promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from wvl_ros.policies.noise import ChunkNoise, OffsetNoise

STEPS = 9


@pytest.fixture
def noise() -> ChunkNoise:
    return ChunkNoise(STEPS, offset_std=0.04, ripple_std=0.02)


def test_the_log_probabilities_of_a_chunk_add_up_to_its_joint_density(noise: ChunkNoise) -> None:
    torch.manual_seed(0)
    mean, gripper = 0.2 * torch.randn(1, STEPS, 6), torch.randn(1, STEPS)
    actions = noise.sample(mean, gripper, 1.0, torch.Generator().manual_seed(1))
    got = noise.log_prob(mean, gripper, actions, 1.0)
    assert got.shape == (1, STEPS)
    covariance = (noise.factor @ noise.factor.T).double().numpy()
    body = sum(
        multivariate_normal(mean[0, :, i].numpy(), covariance).logpdf(actions[0, :, i].numpy()) for i in range(6)
    )
    closed = torch.distributions.Bernoulli(logits=gripper / noise.gripper_temperature)
    want = body + float(closed.log_prob(actions[..., 6]).sum())
    assert float(got.sum()) == pytest.approx(want, rel=1e-4)


def test_samples_share_an_offset_over_the_chunk(noise: ChunkNoise) -> None:
    mean, gripper = torch.zeros(4000, STEPS, 6), torch.zeros(4000, STEPS)
    actions = noise.sample(mean, gripper, 1.0, torch.Generator().manual_seed(0))[..., :6]
    assert float(actions.mean(1).std()) == pytest.approx(0.04, rel=0.05)
    correlation = np.corrcoef(actions[:, 0, 0], actions[:, -1, 0])[0, 1]
    assert correlation > 0.6


def test_temperature_scales_the_deviation_and_the_density(noise: ChunkNoise) -> None:
    mean, gripper = torch.zeros(500, STEPS, 6), torch.full((500, STEPS), 0.3)
    cool = noise.sample(mean, gripper, 0.1, torch.Generator().manual_seed(0))
    warm = noise.sample(mean, gripper, 1.0, torch.Generator().manual_seed(0))
    assert float(warm[..., :6].std()) == pytest.approx(10 * float(cool[..., :6].std()), rel=1e-4)
    assert cool[..., 6].mean() > warm[..., 6].mean()
    assert noise.log_prob(mean, gripper, cool, 0.1).mean() > noise.log_prob(mean, gripper, warm, 1.0).mean()


def test_gradients_raise_the_probability_of_an_action(noise: ChunkNoise) -> None:
    mean = torch.zeros(1, STEPS, 6, requires_grad=True)
    gripper = torch.zeros(1, STEPS, requires_grad=True)
    actions = torch.full((1, STEPS, 7), 0.1)
    actions[..., 6] = 1.0
    noise.log_prob(mean, gripper, actions, 1.0).sum().backward()
    assert mean.grad is not None
    assert gripper.grad is not None
    assert float(mean.grad.sum()) > 0
    assert (gripper.grad > 0).all()


def test_where_the_mean_leaves_the_action_space_the_density_is_still_that_of_what_was_drawn(noise: ChunkNoise) -> None:
    mean, gripper = torch.full((500, STEPS, 6), 2.0), torch.zeros(500, STEPS)
    actions = noise.sample(mean, gripper, 1.0, torch.Generator().manual_seed(0))
    there = noise.log_prob(mean, gripper, actions, 1.0)
    at_home = noise.log_prob(mean - 2.0, gripper, actions - torch.tensor([2.0] * 6 + [0.0]), 1.0)
    assert torch.allclose(there, at_home, atol=1e-2)


def test_offset_noise_shifts_a_chunk_s_translation_and_nothing_else() -> None:
    noise = OffsetNoise(STEPS, offset_std=0.04)
    mean, gripper = 0.2 * torch.randn(4000, STEPS, 6), torch.randn(4000, STEPS)
    actions = noise.sample(mean, gripper, 2.0, torch.Generator().manual_seed(0))
    shift = actions[..., :6] - mean
    assert torch.allclose(shift[:, :1].expand_as(shift), shift, atol=1e-6)
    assert torch.equal(shift[..., 3:], torch.zeros_like(shift[..., 3:]))
    assert float(shift[:, 0, :3].std()) == pytest.approx(0.08, rel=0.05)
    assert torch.equal(actions[..., 6], (gripper > 0).float())


def test_offset_noise_s_density_is_that_of_the_shift() -> None:
    noise = OffsetNoise(STEPS, offset_std=0.04)
    mean, other, gripper = 0.2 * torch.randn(3, STEPS, 6), 0.2 * torch.randn(3, STEPS, 6), torch.randn(3, STEPS)
    actions = noise.sample(mean, gripper, 1.5, torch.Generator().manual_seed(0))
    parts = noise.log_prob_parts(other, gripper, actions, 1.5)
    assert parts.shape == (3, STEPS, 7)
    assert torch.equal(parts[:, ~noise.parts], torch.zeros(3, STEPS * 7 - 3))
    density = torch.distributions.Normal(other[..., :3].mean(1), 0.06)
    assert torch.allclose(parts[:, 0, :3], density.log_prob(actions[..., :3].mean(1)), atol=1e-4)
    apart = noise.divergence(mean, other, 1.5)
    told = torch.distributions.kl_divergence(torch.distributions.Normal(mean[..., :3].mean(1), 0.06), density)
    assert torch.allclose(apart[:, 0, :3], told, atol=1e-4)
    assert float(apart.sum()) == pytest.approx(float(told.sum()), rel=1e-4)


def test_what_has_no_density_is_known_to_stray() -> None:
    noise = OffsetNoise(STEPS, offset_std=0.04)
    mean, gripper = 0.2 * torch.randn(3, STEPS, 6), torch.randn(3, STEPS)
    shifted = mean.clone()
    shifted[..., :3] += 0.1
    assert float(noise.strayed(shifted, gripper, mean, gripper)) == pytest.approx(0, abs=1e-6)
    assert float(noise.strayed(mean, gripper + 0.2, mean, gripper)) == pytest.approx(0.02, rel=1e-3)
    turned = mean.clone()
    turned[..., 3:] += 0.1
    assert float(noise.strayed(turned, gripper, mean, gripper)) > 1
