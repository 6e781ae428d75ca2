"""Practice in the world model: what is kept of a rollout is what the policy saw, did and was likely to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from wvl_ros.checkpoints import find
from wvl_ros.policies.small import SmallPolicy, state_vector
from wvl_ros.sans.episode import Episode
from wvl_ros.training.imagined_episodes import Recorder
from wvl_ros.training.practice import command, join, practise
from wvl_ros.world_model.imagination import imagination
from wvl_ros.world_model.kinematics import Kinematics
from wvl_ros.world_model.loading import load_world_model
from wvl_ros.worlds import droid
from wvl_ros.worlds.imagined_start import find_start


def test_a_batch_of_chunks_is_commanded_as_one_by_one() -> None:
    rng = np.random.default_rng(0)
    pose = np.array([[0.5, 0.1, 0.3, 3.0, 0.1, 0.4], [0.45, -0.1, 0.25, -3.0, 0.0, -0.2]])
    start = torch.tensor(pose)
    k = Kinematics.at_rest(start, torch.zeros(2, 1), torch.cat([start, torch.zeros(2, 1)], 1).double())
    actions = np.concatenate([rng.uniform(-1, 1, (2, 5, 6)), rng.integers(0, 2, (2, 5, 1))], 2)
    poses = command(k.pack(), torch.tensor(actions)).numpy()
    for row in range(2):
        one = droid.convert_chunk(actions[row], "cartesian_velocity", "cartesian_position", np.zeros(7), pose[row])
        assert np.allclose(poses[row, :, :3], one[:, :3], atol=1e-9)
        assert np.allclose(droid.euler_to_matrix(poses[row, :, 3:6]), droid.euler_to_matrix(one[:, 3:6]), atol=1e-6)
        assert np.array_equal(poses[row, :, 6], one[:, 6])


@pytest.mark.parametrize("name", ["small", "base"])
def test_what_is_kept_of_a_rollout(name: str, make_episode: Callable[..., Episode]) -> None:
    model = load_world_model(find("world_model", "small"))
    worlds = Recorder(imagination(model))
    policy = SmallPolicy.from_pretrained(find("policy", name))
    episode = make_episode(steps=13)
    start = find_start(episode, 0, worlds, "tabletop", task="push")
    practice = practise(policy, worlds, [start] * 3, [0, 1, 2], 1.0, torch.Generator().manual_seed(0))
    count, decisions, size = practice.counts.shape
    assert (count, size) == (3, policy.chunk_size)
    assert decisions <= 60 // policy.execute_steps  # 60 steps of a push
    told = [max(episode.extra["success_probability"]) for episode in worlds.episodes([0, 1, 2], [start] * 3)]
    assert practice.chance.tolist() == pytest.approx(
        [1.0 if s else c for s, c in zip(practice.success, told, strict=True)], abs=1e-4
    )
    executed = practice.counts.sum((1, 2))
    assert int(executed.max()) <= 60
    assert not practice.counts[:, :, policy.execute_steps :].any()
    assert practice.counts[:, 0, : policy.execute_steps].all()
    # What it found then is not searched for again, and is what it would find.
    rows, moments = practice.counts.any(2).nonzero(as_tuple=True)
    inputs = practice.inputs(rows, moments)
    assert (inputs.places is None) == (policy.config.place_channels == 0)
    with torch.inference_mode():
        again = policy.network(replace(inputs, places=None))
        assert torch.allclose(policy.network(inputs).mean, again.mean, atol=1e-4)
    # An end does not come back to life.
    active = practice.counts[:, :, 0].int()
    assert bool((active[:, 1:] <= active[:, :-1]).all())
    # The first look is the episode's own observation.
    row = {name: getattr(episode, name)[0] for name in ("cartesian_position", "gripper_position")}
    assert np.allclose(practice.state[0, 0].numpy(), state_vector(row), atol=1e-5)
    with torch.no_grad():
        every = torch.arange(count)
        out = policy.network(practice.inputs(every, torch.zeros_like(every)))
        again = policy.noise.log_prob_parts(out.mean, out.gripper, practice.actions[:, 0], 1.0)
    assert torch.allclose(again, practice.log_probs[:, 0], atol=1e-4)
    assert not torch.equal(practice.actions[0, 0], practice.actions[1, 0])

    both = join([practice.select(torch.tensor([2])), practice])
    assert len(both.success) == 4
    assert torch.equal(both.actions[0], practice.actions[2])


def test_practices_of_several_lengths_are_joined(make_episode: Callable[..., Episode]) -> None:
    worlds = imagination(load_world_model(find("world_model", "small")), stop_at_success=False)
    policy = SmallPolicy.from_pretrained(find("policy", "small"))
    parts = []
    for steps in (13, 25):
        start = find_start(make_episode(steps=steps), 0, worlds, "tabletop", task="my own")
        parts.append(practise(policy, worlds, [start], [0], 1.0, torch.Generator().manual_seed(0)))
    assert [part.counts.shape[1] for part in parts] == [2, 4]
    whole = join(parts)
    assert whole.counts.shape[:2] == (2, 4)
    assert whole.counts.sum((1, 2)).tolist() == [12, 24]
    assert torch.equal(whole.images[1], parts[1].images[0])
