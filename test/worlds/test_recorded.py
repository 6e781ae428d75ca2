"""The recorded world plays an episode as it was, whatever the action."""

from __future__ import annotations

import numpy as np
import pytest

from wvl_ros.errors import ActionError, CheckpointError, EpisodeError, UnknownNameError
from wvl_ros.sans.sources import load_source
from wvl_ros.worlds.recorded import RecordedWorld, commanded_poses
from wvl_ros.worlds.registry import make_world


@pytest.fixture(scope="module")
def episode():
    return load_source("droid")


def test_it_plays_to_the_end_with_the_recorded_outcome(episode):
    world = RecordedWorld()
    observation, info = world.reset(options={"source": episode, "start": 150})
    assert world.observation_space.contains(observation)
    over = False
    while not over:
        action = np.append(np.random.default_rng(0).uniform(-0.5, 0.5, 6), 0.0)
        observation, reward, terminated, truncated, info = world.step(action)
        over = terminated or truncated
    assert (info["step"], info["outcome"], reward, world.max_steps) == (16, "success", 1.0, 16)
    np.testing.assert_array_equal(observation["joint_position"], episode.joint_position[166])
    np.testing.assert_array_equal(info["commanded_pose"], episode.action[165])


def test_images_are_scaled_to_the_worlds_size(episode):
    observation, _ = RecordedWorld(96, 160).reset(options={"source": episode})
    blocks = episode.images["wrist_image_left"][0].reshape(96, 2, 160, 2, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(observation["wrist_image_left"], blocks, atol=1)


def test_it_refuses_what_it_cannot_play(episode):
    world = make_world("recorded")
    with pytest.raises(EpisodeError, match="no source was given; for instance source:=droid"):
        world.reset()
    with pytest.raises(EpisodeError, match="start 166 leaves nothing to play"):
        world.reset(options={"source": episode, "start": 166})
    world.reset(options={"source": episode})
    with pytest.raises(ActionError, match="NaN"):
        world.step(np.full(7, np.nan))


def test_commanded_poses_of_joint_actions_follow_the_arm(episode):
    short = load_source("droid")
    short.action = np.hstack([short.joint_position[1:], short.gripper_position[1:]])
    short.action_space = "joint_position"
    np.testing.assert_allclose(commanded_poses(short)[1:, :3], short.cartesian_position[1:, :3], atol=1e-5)


def test_unknown_worlds_and_missing_weights_are_named():
    with pytest.raises(
        UnknownNameError, match="There is no world called 'moon'; choose one of: imagined, recorded, tabletop"
    ):
        make_world("moon")
    with pytest.raises(CheckpointError):
        make_world("imagined", checkpoint="/nowhere")
