"""The imagined world: the interface of every world, from a recorded episode or a fresh tabletop."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from wvl_ros.errors import ActionError, CheckpointError, ConfigError, EpisodeError, ObservationError, UnknownNameError
from wvl_ros.sans.episode import Episode
from wvl_ros.world_model.model import WorldModel
from wvl_ros.worlds import droid
from wvl_ros.worlds.imagined import ImaginedWorld


@pytest.fixture
def model() -> WorldModel:
    torch.manual_seed(0)
    model = WorldModel(channels=16, condition_dim=32, vocabulary=["red"], rig="tabletop", success_threshold=0.99)
    torch.nn.init.normal_(model.to_frame.weight, std=0.05)
    return model.eval()


def _play(world: ImaginedWorld, episode: Episode, seed: int = 0, start: int = 0) -> list[dict[str, np.ndarray]]:
    observations = [world.reset(seed=seed, options={"source": episode, "start": start})[0]]
    observations += [world.step(action)[0] for action in episode.action[start:]]
    return observations


def test_a_recorded_episode_is_imagined_from_its_first_images(
    model: WorldModel, make_episode: Callable[..., Episode]
) -> None:
    episode = make_episode(steps=13)
    world = ImaginedWorld(model=model, image_height=64, image_width=64)
    observations = _play(world, episode)
    assert all(world.observation_space.contains(observation) for observation in observations)
    for camera in droid.CAMERAS:
        assert np.array_equal(observations[0][camera], episode.images[camera][0])
        images = [observation[camera] for observation in observations]
        changed = [not np.array_equal(a, b) for a, b in itertools.pairwise(images)]
        # A frame needs its three actions: images change with steps 3, 6, 9, 12 only.
        assert [i + 1 for i, change in enumerate(changed) if change] == [3, 6, 9, 12]


def test_the_arm_follows_the_commanded_poses(model: WorldModel, make_episode: Callable[..., Episode]) -> None:
    episode = make_episode(steps=13)
    observations = _play(ImaginedWorld(model=model), episode)
    for observation, pose in zip(observations, episode.cartesian_position, strict=True):
        assert np.allclose(observation["cartesian_position"][:3], pose[:3], atol=1e-4)
        reached = droid.forward_kinematics(observation["joint_position"])
        assert np.allclose(reached[:3], pose[:3], atol=2e-3)


def test_the_same_seed_imagines_the_same(model: WorldModel, make_episode: Callable[..., Episode]) -> None:
    episode = make_episode(steps=7)
    # One step from pure noise draws the mean, whatever the seed; with two, the noise shows.
    first, again, other = (_play(ImaginedWorld(model=model, steps=2), episode, seed)[-1] for seed in (5, 5, 6))
    camera = droid.CAMERAS[0]
    assert np.array_equal(first[camera], again[camera])
    assert not np.array_equal(first[camera], other[camera])


def test_it_starts_inside_an_episode_too(model: WorldModel, make_episode: Callable[..., Episode]) -> None:
    episode = make_episode(steps=13)
    observation, info = ImaginedWorld(model=model).reset(seed=0, options={"source": episode, "start": 7})
    assert np.array_equal(observation["joint_position"], episode.joint_position[7])
    assert np.allclose(info["commanded_pose"][:3], episode.action[6][:3], atol=1e-6)
    with pytest.raises(EpisodeError, match="0 to 12"):
        ImaginedWorld(model=model).reset(options={"source": episode, "start": 13})


def test_the_reward_head_ends_the_episode(model: WorldModel, make_episode: Callable[..., Episode]) -> None:
    model.register_to_config(success_threshold=0.0, success_frames=2)
    world = ImaginedWorld(model=model)
    episode = make_episode(steps=13)
    world.reset(seed=0, options={"source": episode})
    steps = [world.step(action) for action in episode.action[:6]]
    assert [step[2] for step in steps] == [False] * 5 + [True]
    assert steps[-1][1] == 1.0
    assert steps[-1][4]["outcome"] == "success"
    assert 0 < steps[-1][4]["success_probability"] < 1


def test_it_ends_as_a_failure_at_its_last_step(model: WorldModel, make_episode: Callable[..., Episode]) -> None:
    world = ImaginedWorld(model=model, max_steps=4)
    episode = make_episode(steps=13)
    world.reset(seed=0, options={"source": episode})
    steps = [world.step(action) for action in episode.action[:4]]
    assert [step[3] for step in steps] == [False] * 3 + [True]
    assert steps[-1][4]["outcome"] == "failure"


def test_an_episode_lasts_as_long_as_its_task_or_its_recording(
    model: WorldModel, make_episode: Callable[..., Episode]
) -> None:
    world = ImaginedWorld(model=model)
    for task, start, steps in (("sweep", 0, 240), ("push", 5, 110), ("laundry", 0, 12), ("laundry", 5, 7)):
        episode = make_episode(steps=13)
        episode.task = task
        world.reset(seed=0, options={"source": episode, "start": start})
        assert world.max_steps == steps


def test_a_far_command_is_shortened_and_a_bad_one_refused(
    model: WorldModel, make_episode: Callable[..., Episode], caplog: pytest.LogCaptureFixture
) -> None:
    world = ImaginedWorld(model=model)
    episode = make_episode()
    with pytest.raises(ConfigError, match="reset"):
        world.step(episode.action[0])
    world.reset(seed=0, options={"source": episode})
    with pytest.raises(ActionError, match="NaN"):
        world.step(np.full(7, np.nan))
    with pytest.raises(ActionError, match="7 numbers"):
        world.step(np.zeros(8))
    far = episode.action[0] + np.array([0.4, 0, 0, 0, 0, 0, 0])
    info = world.step(far)[4]
    moved = np.linalg.norm(info["commanded_pose"][:3] - episode.cartesian_position[0][:3])
    assert moved == pytest.approx(droid.MAX_LINEAR_DELTA, abs=1e-3)
    with caplog.at_level(logging.WARNING):
        world.step(np.append(far[:6], 1.5))
    assert "clipped" in caplog.text


@pytest.mark.parametrize("space", ["cartesian_velocity", "joint_position", "joint_velocity"])
def test_every_action_space_moves_the_arm(
    model: WorldModel, make_episode: Callable[..., Episode], space: droid.ActionSpace
) -> None:
    world = ImaginedWorld(model=model, action_space=space)
    episode = make_episode()
    observation, _ = world.reset(seed=0, options={"source": episode})
    action = np.zeros(droid.ACTION_DIMS[space])
    if space == "joint_position":
        action[:7] = observation["joint_position"]
    action[0] += 0.2
    target = droid.convert_chunk(
        action[None], space, "cartesian_position", observation["joint_position"], observation["cartesian_position"]
    )[0]
    limited = droid.limit_pose(target[:6], observation["cartesian_position"])
    assert np.allclose(world.step(action)[0]["cartesian_position"][:3], limited[:3], atol=1e-4)


def test_a_source_that_does_not_fit_is_refused(model: WorldModel, make_episode: Callable[..., Episode]) -> None:
    world = ImaginedWorld(model=model)
    with pytest.raises(ObservationError, match="32x32"):
        world.reset(options={"source": make_episode(size=32)})
    episode = make_episode()
    del episode.images["wrist_image_left"]
    with pytest.raises(ObservationError, match="wrist_image_left"):
        world.reset(options={"source": episode})


def test_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no world model checkpoint"):
        ImaginedWorld(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text('{"_class_name": "WorldModel"}')
    with pytest.raises(CheckpointError, match="missing"):
        ImaginedWorld(tmp_path)


def test_a_fresh_reset_shows_the_tabletop_of_that_seed(model: WorldModel) -> None:
    from wvl_ros.worlds.tabletop import TabletopWorld

    world, table = ImaginedWorld(model=model), TabletopWorld("push")
    try:
        observation, info = world.reset(seed=4, options={"task": "push"})
        true, true_info = table.reset(seed=4, options={"task": "push"})
        assert info["instruction"] == true_info["instruction"]
        assert np.array_equal(observation["wrist_image_left"], true["wrist_image_left"])
        assert np.array_equal(observation["joint_position"], true["joint_position"])
        with pytest.raises(UnknownNameError, match="juggle"):
            world.reset(seed=4, options={"task": "juggle"})
    finally:
        world.close()
        table.close()
