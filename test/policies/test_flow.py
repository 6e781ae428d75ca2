"""The flow head: it learns what has two answers, draws by seed, and is saved and loaded with its policy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from wvl_ros.errors import UnknownNameError
from wvl_ros.policies.flow import draw, flow_loss, to_flow
from wvl_ros.policies.network import Context, Inputs, PolicyConfig, PolicyNetwork
from wvl_ros.policies.small import SmallPolicy
from wvl_ros.worlds import droid

CONFIG = PolicyConfig(channels=8, keypoints=4, hidden=128, head="flow", chunk_size=3, execute_steps=3)


def _inputs(count: int) -> Inputs:
    return Inputs(
        torch.zeros(count, 2, 3, 64, 64, dtype=torch.uint8), torch.zeros(count, 10), torch.ones(count, 4).long()
    )


def test_it_learns_two_answers_where_a_mean_would_be_neither() -> None:
    torch.manual_seed(0)
    network = PolicyNetwork(CONFIG)
    steps, rate, generator = 1000, 3e-3, torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(network.head.parameters(), rate)
    one, places = network.context(_inputs(1)), torch.full((256, 6), float("nan"))
    known = Context(one.features.detach().expand(256, -1), one.places.detach().expand(256, -1))
    sides = torch.where(torch.arange(256) % 2 == 0, 0.5, -0.5)
    actions = torch.zeros(256, 3, 7)
    actions[..., 1] = sides[:, None]
    actions[..., 6] = (sides > 0).float()[:, None]
    losses = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - step / steps)
        terms = flow_loss(network, known, actions, places, generator)
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        losses.append(float(terms["flow"].detach()))
    assert np.mean(losses[-25:]) < 0.4 * np.mean(losses[:25])
    with torch.no_grad():
        drawn = draw(network, known, 10, generator)
    lateral, closed = drawn[:, 0, 1], drawn[:, 0, 6]
    assert (lateral.abs() > 0.25).float().mean() > 0.8
    assert 0.25 < (lateral > 0).float().mean() < 0.75
    assert ((lateral > 0) == (closed > 0)).float().mean() > 0.9  # each side with its gripper


def test_what_is_not_known_does_not_count() -> None:
    torch.manual_seed(0)
    network = PolicyNetwork(CONFIG)
    actions = torch.rand(4, 3, 7)
    actions[:, 2] = float("nan")
    places = torch.full((4, 6), float("nan"))
    terms = flow_loss(network, network.context(_inputs(4)), actions, places, torch.Generator().manual_seed(0))
    assert float(terms["places"].detach()) == 0.0
    assert torch.isfinite(terms["loss"])
    other = actions.clone()
    other[:, :2, 0] += 0.3
    again = flow_loss(network, network.context(_inputs(4)), other, places, torch.Generator().manual_seed(0))
    assert float(again["flow"].detach()) != float(terms["flow"].detach())


def test_the_path_leads_from_noise_to_the_action() -> None:
    # A network that knows the velocity exactly brings every noise to the action in any number of steps.
    class Exact(PolicyNetwork):
        def velocity(self, known: object, noisy: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
            return (noisy - to_flow(target)) / time[:, None, None]

    target = torch.tensor([[[0.3, -0.2, 0.1, 0.0, 0.0, 0.2, 1.0]]]).expand(2, 3, 7)
    for steps in (1, 4):
        with torch.no_grad():
            network = Exact(CONFIG)
            found = draw(network, network.context(_inputs(2)), steps, torch.Generator().manual_seed(0))
        assert torch.allclose(found, target, atol=1e-5)


def test_a_policy_with_a_flow_head_draws_by_seed_and_survives_the_disk(tmp_path: Path) -> None:
    torch.manual_seed(0)
    policy = SmallPolicy(CONFIG)
    rng = np.random.default_rng(0)
    observation = {camera: rng.integers(0, 255, (64, 64, 3), dtype=np.uint8) for camera in droid.CAMERAS} | {
        "cartesian_position": np.array([0.5, 0.0, 0.4, 3.1, 0.0, 0.0]),
        "gripper_position": np.array([0.2]),
    }
    policy.save_pretrained(tmp_path)
    chunks = []
    for which, seed in ((policy, 1), (SmallPolicy.from_pretrained(tmp_path), 1), (policy, 2)):
        which.reset(seed)
        chunks.append(which.act([observation], ["push"]))
    assert chunks[0].log_probs is None
    np.testing.assert_array_equal(chunks[0].actions, chunks[1].actions)
    assert not np.array_equal(chunks[0].actions, chunks[2].actions)
    for actions in chunks[0].actions:
        np.testing.assert_array_equal(droid.check_chunk(actions, policy.action_space), actions)


def test_another_head_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="gaussian"):
        replace(CONFIG, head="diffusion")
