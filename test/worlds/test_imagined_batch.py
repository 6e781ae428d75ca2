"""Many imagined rollouts at once: each is what it would be alone, and what has ended stands still."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from wvl_ros.errors import ConfigError
from wvl_ros.sans.episode import Episode
from wvl_ros.world_model.model import WorldModel
from wvl_ros.worlds import droid
from wvl_ros.worlds.imagined import ImaginedWorld
from wvl_ros.worlds.imagined_batch import ImaginedWorlds


def _model(**settings: float) -> WorldModel:
    torch.manual_seed(0)
    config = {"success_threshold": 0.99} | settings
    model = WorldModel(channels=16, condition_dim=32, vocabulary=["red"], rig="tabletop", **config)
    torch.nn.init.normal_(model.to_frame.weight, std=0.05)
    return model.eval()


def test_each_rollout_is_what_it_would_be_alone(make_episode: Callable[..., Episode]) -> None:
    episodes = [make_episode(seed=i, steps=13) for i in range(3)]
    starts, model = [0, 3, 6], _model()
    worlds = ImaginedWorlds(3, model=model)
    seen, info = worlds.reset(seed=5, options={"source": episodes, "start": starts})
    assert worlds.observation_space.contains(seen)
    assert info["instruction"] == [episode.instruction for episode in episodes]
    for t in range(6):
        actions = np.stack([episode.action[s + t] for episode, s in zip(episodes, starts, strict=True)])
        seen, *_, info = worlds.step(actions)
    for i, (episode, start) in enumerate(zip(episodes, starts, strict=True)):
        alone = ImaginedWorld(model=model, image_height=64, image_width=64)
        alone.reset(seed=5 + i, options={"source": episode, "start": start})
        for t in range(6):
            own, *_, own_info = alone.step(episode.action[start + t])
        for camera in droid.CAMERAS:
            assert np.abs(seen[camera][i].astype(int) - own[camera]).max() <= 1
        assert np.allclose(seen["cartesian_position"][i], own["cartesian_position"], atol=1e-4)
        assert np.allclose(info["commanded_pose"][i], own_info["commanded_pose"], atol=1e-4)
        assert info["success_probability"][i] == pytest.approx(own_info["success_probability"], abs=1e-3)


def test_a_rollout_that_succeeded_is_rewarded_once_and_stands_still(make_episode: Callable[..., Episode]) -> None:
    worlds = ImaginedWorlds(2, model=_model(success_threshold=0.0), max_steps=9)
    worlds.reset(seed=0, options={"source": make_episode(steps=13)})
    rewards, frames = [], []
    for action in make_episode(steps=13).action[:9]:
        seen, reward, *_ = worlds.step(np.stack([action, action]))
        rewards.append(reward)
        frames.append(seen["wrist_image_left"])
    assert np.sum(rewards, 0).tolist() == [1.0, 1.0]
    assert rewards[2].tolist() == [1.0, 1.0]
    assert np.array_equal(frames[2], frames[-1])


def test_rollouts_are_truncated_at_their_own_limits(make_episode: Callable[..., Episode]) -> None:
    worlds = ImaginedWorlds(2, model=_model())
    episode = replace(make_episode(steps=13), task="")
    worlds.reset(seed=0, options={"source": episode, "start": [0, 8]})
    ends = []
    for action in episode.action:
        *_, truncated, info = worlds.step(np.stack([action, action]))
        ends.append(truncated.tolist())
    assert [row[1] for row in ends].index(True) == 13 - 1 - 8 - 1
    assert [row[0] for row in ends].index(True) == 12 - 1
    assert not info["active"].any()


def test_what_does_not_fit_is_refused(make_episode: Callable[..., Episode]) -> None:
    worlds = ImaginedWorlds(2, model=_model())
    with pytest.raises(ConfigError, match="reset"):
        worlds.step(np.zeros((2, 7)))
    with pytest.raises(ConfigError, match="2 rollouts, but 3 seeds"):
        worlds.reset(seed=[1, 2, 3])
    with pytest.raises(ConfigError, match="2 rollouts, but 1 of the option 'source'"):
        worlds.reset(seed=0, options={"source": [make_episode()]})
    with pytest.raises(ConfigError, match="at least 1"):
        ImaginedWorlds(0, model=_model())
