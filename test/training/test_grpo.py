"""The mathematics of GRPO against an independent reference: plain loops over numbers, gradients by differences."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wvl_ros.errors import ConfigError, UnknownNameError
from wvl_ros.training.grpo import (
    GRPOSettings,
    group_advantages,
    informative,
    running_advantages,
    steer,
    surrogate,
)


def reference(
    new: np.ndarray, old: np.ndarray, advantages: np.ndarray, counts: np.ndarray, low: float, high: float
) -> float:
    """The mean over counted tokens of -min(r A, clip(r, 1 - low, 1 + high) A), one number after another."""
    total, whole = 0.0, 0.0
    for row in range(len(new)):
        for token in range(new.shape[1]):
            if counts[row, token]:
                ratio = math.exp(new[row, token] - old[row, token])
                limited = min(max(ratio, 1 - low), 1 + high)
                total += -min(ratio * advantages[row], limited * advantages[row])
                whole += 1.0
    return total / max(whole, 1.0)


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.floats(0.05, 0.4), st.floats(0.05, 0.4))
def test_loss_and_gradient_are_the_references(seed: int, low: float, high: float) -> None:
    rng = np.random.default_rng(seed)
    old, new = rng.normal(-1, 1, (3, 5)), rng.normal(-1, 0.3, (3, 5))
    new = old + 0.5 * (new - new.mean())
    advantages, counts = rng.normal(size=3), rng.random((3, 5)) < 0.7
    log_probs = torch.tensor(new, requires_grad=True)
    loss, _ = surrogate(
        log_probs, torch.tensor(old), torch.tensor(advantages)[:, None], torch.tensor(counts), low, high
    )  # fmt: skip
    assert float(loss.detach()) == pytest.approx(reference(new, old, advantages, counts, low, high), abs=1e-9)
    (gradient,) = torch.autograd.grad(loss, log_probs)
    for row in range(3):
        for token in range(5):
            ratio = math.exp(new[row, token] - old[row, token])
            if min(abs(ratio - 1 + low), abs(ratio - 1 - high)) < 1e-4:
                continue  # at a corner there is no derivative
            step = np.zeros_like(new)
            step[row, token] = 1e-6
            ends = [reference(new + sign * step, old, advantages, counts, low, high) for sign in (1, -1)]
            assert float(gradient[row, token]) == pytest.approx((ends[0] - ends[1]) / 2e-6, abs=1e-5)


@given(st.lists(st.lists(st.integers(0, 1), min_size=4, max_size=4), min_size=1, max_size=5))
def test_advantages_are_standardised_by_group(rewards: list[list[int]]) -> None:
    found = group_advantages(torch.tensor(rewards, dtype=torch.float64))
    for row, group in zip(found.tolist(), rewards, strict=True):
        mean = sum(group) / 4
        deviation = math.sqrt(sum((r - mean) ** 2 for r in group) / 3)
        assert row == pytest.approx([(r - mean) / (deviation + 1e-6) for r in group], abs=1e-9)


@given(st.integers(0, 10**6))
def test_a_decision_is_compared_with_those_that_still_run(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rewards, lengths = rng.integers(0, 2, (3, 4)).astype(float), rng.integers(1, 6, (3, 4))
    running = np.arange(5) < lengths[..., None]
    found = running_advantages(torch.tensor(rewards), torch.tensor(running)).numpy()
    for group in range(3):
        deviation = rewards[group].std(ddof=1) + 1e-6
        for step in range(5):
            still = [i for i in range(4) if running[group, i, step]]
            for i in range(4):
                mean = sum(rewards[group, still]) / max(1, len(still))
                expected = (rewards[group, i] - mean) / deviation if i in still else 0.0
                assert found[group, i, step] == pytest.approx(expected, abs=1e-9)


def test_where_all_run_the_baseline_is_the_groups() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 1.0, 0.0]])
    found = running_advantages(rewards, torch.ones(2, 4, 3, dtype=torch.bool))
    assert torch.allclose(found, group_advantages(rewards)[..., None].expand(2, 4, 3))


def test_groups_that_all_succeed_or_fail_are_left_out() -> None:
    rewards = torch.tensor([[0.0] * 8, [1.0] * 8, [1.0] + [0.0] * 7, [1.0] * 7 + [0.0], [1.0, 0.0] * 4])
    assert informative(rewards, 0.0, 1.0).tolist() == [False, False, True, True, True]
    assert informative(rewards, 0.2, 0.9).tolist() == [False, False, False, True, True]
    chances = torch.tensor([[0.3] * 8, [0.3, 0.31] * 4, [0.2, 0.4] * 4])  # the middle ones differ by too little
    assert informative(chances, 0.1, 0.9).tolist() == [False, False, True]


def test_what_was_not_acted_on_does_not_count() -> None:
    log_probs = torch.zeros(2, 3, requires_grad=True)
    counts = torch.tensor([[1, 1, 0], [0, 0, 0]])
    loss, _ = surrogate(log_probs, torch.zeros(2, 3), torch.tensor([[1.0], [-1.0]]), counts, 0.2, 0.28)
    loss.backward()
    assert log_probs.grad is not None
    assert log_probs.grad.tolist() == [[-0.5, -0.5, 0.0], [0.0, 0.0, 0.0]]


def test_the_share_that_is_clipped_is_told() -> None:
    log_probs, old = torch.tensor([[0.5, 0.0, -0.5]]), torch.zeros(1, 3)
    up = surrogate(log_probs, old, torch.ones(1, 1), torch.ones(1, 3), 0.2, 0.28)[1]
    down = surrogate(log_probs, old, -torch.ones(1, 1), torch.ones(1, 3), 0.2, 0.28)[1]
    assert [float(up), float(down)] == pytest.approx([1 / 3, 1 / 3])


def test_the_rate_is_steered_towards_the_divergence() -> None:
    assert steer(1e-4, 0.02, 0.012, 1.3) == pytest.approx(1e-4 / 1.3)
    assert steer(1e-4, 0.01, 0.012, 1.3) == pytest.approx(1.3e-4)
    assert steer(1e-4, 0.5, 0.0, 1.3) == 1e-4


@pytest.mark.parametrize(
    "wrong",
    [{"group_size": 1}, {"clip_low": 0.0}, {"lowest": 0.9, "highest": 0.1}, {"kl_step": 1.0}, {"updates": 0}],
)
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        GRPOSettings(**wrong)


def test_an_unknown_reward_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="no reward of GRPO called 'luck'"):
        GRPOSettings(reward="luck")
    with pytest.raises(UnknownNameError, match="no baseline of GRPO called 'best'"):
        GRPOSettings(baseline="best")
