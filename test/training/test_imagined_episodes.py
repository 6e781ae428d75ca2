"""Imagined rollouts as episodes: they hold what was done and seen, and can be learned from like any other."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from wvl_ros.checkpoints import find
from wvl_ros.policies.small import SmallPolicy
from wvl_ros.sans.episode import Episode
from wvl_ros.training.imagined_episodes import Recorder, replay
from wvl_ros.training.practice import practise
from wvl_ros.training.samples import chunk_targets
from wvl_ros.world_model.imagination import PatchImagination
from wvl_ros.world_model.loading import load_small_world_model
from wvl_ros.worlds import droid
from wvl_ros.worlds.imagined_start import find_start

MakeEpisode = Callable[..., Episode]


@pytest.fixture(scope="module")
def worlds() -> PatchImagination:
    return PatchImagination(load_small_world_model(find("world_model", "small"), "the test"))


def test_an_imagined_rollout_becomes_an_episode(worlds: PatchImagination, make_episode: MakeEpisode) -> None:
    policy = SmallPolicy.from_pretrained(find("policy", "small"))
    starts = [find_start(make_episode(steps=13, seed=i), 0, worlds, "tabletop", task="push") for i in range(3)]
    recorder = Recorder(worlds)
    practice = practise(policy, recorder, starts, [5, 6, 7], 1.0, torch.Generator().manual_seed(0), limits=[12, 30, 30])
    episodes = recorder.episodes(range(3), starts, "small", "small")
    for row, episode in enumerate(episodes):
        executed = int(practice.counts[row].sum())
        assert len(episode) - 1 == executed
        assert len(episode.extra["success_probability"]) == executed // 3  # type: ignore[arg-type]
        assert episode.source == "policy/imagined"
        assert not episode.outcome
        np.testing.assert_array_equal(episode.images[droid.CAMERAS[2]][0], starts[row].views[2])
        reached = np.stack([droid.forward_kinematics(q) for q in episode.joint_position])
        np.testing.assert_allclose(reached[:, :3], episode.cartesian_position[:, :3], atol=2e-3)
        # What it teaches is what was done: the first chunk, up to where the policy decided anew.
        taught = chunk_targets(episode, policy.chunk_size)[0, : policy.execute_steps]
        done = practice.actions[row, 0, : policy.execute_steps].numpy()
        limited = done[:, :3] / np.maximum(1, np.linalg.norm(done[:, :3], axis=1, keepdims=True))
        np.testing.assert_allclose(taught[:, :3], limited, atol=5e-3)
        np.testing.assert_array_equal(taught[:, 6], done[:, 6])
    assert len(episodes[0]) - 1 == 12


def test_a_replay_takes_the_recorded_actions_and_does_not_depend_on_its_company(
    worlds: PatchImagination, make_episode: MakeEpisode
) -> None:
    recorded = [make_episode(steps=steps, seed=steps) for steps in (14, 2, 22)]
    together = replay(worlds, recorded, "tabletop")
    assert [len(episode) for episode in together] == [13, 1, 22]  # whole frames of three steps
    np.testing.assert_allclose(together[2].action, recorded[2].action, atol=1e-6)
    assert [len(episode) for episode in replay(worlds, recorded[1:2], "tabletop")] == [1]  # nothing is drawn at all
    alone = replay(worlds, recorded[2:], "tabletop")[0]
    chances = [episode.extra["success_probability"] for episode in (together[2], alone)]
    np.testing.assert_allclose(chances[0], chances[1], atol=0.05)  # bfloat16 or float32, by the batch
    errors = np.abs(together[2].cartesian_position[:, :3] - recorded[2].cartesian_position[:, :3]).max()
    assert errors < 0.03
