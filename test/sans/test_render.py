"""The video and the contact sheet of an episode."""

from __future__ import annotations

import argparse

import numpy as np
import pytest
from PIL import Image

from wvl_ros.commands import render as command
from wvl_ros.errors import EpisodeError
from wvl_ros.sans.droid import read_video
from wvl_ros.sans.episode import Episode
from wvl_ros.sans.render import CAPTION, Reference, render
from wvl_ros.worlds.droid import CAMERAS

N = 5


@pytest.fixture
def episode():
    shades = np.arange(N, dtype=np.uint8).reshape(N, 1, 1, 1) * 40
    return Episode(
        images={camera: np.broadcast_to(shades, (N, 64, 64, 3)).copy() for camera in CAMERAS},
        joint_position=np.zeros((N, 7)),
        cartesian_position=np.zeros((N, 6)),
        gripper_position=np.zeros((N, 1)),
        action=np.zeros((N - 1, 7)),
        reward=np.zeros(N - 1, np.float32),
        task="push",
        instruction="push the cube",
        outcome="success",
        source="policy/imagined",
    )


def test_the_video_shows_each_step_large_enough_with_the_reference_above(episode, tmp_path):
    video, sheet = render(episode, tmp_path, Reference(episode, start=2))
    frames = read_video(video)
    assert len(frames) == N
    assert frames.shape[1:3] == (CAPTION + 2 * 192, 3 * 192 + 8)
    middle = frames[1, :, 400].mean(axis=-1)  # in the last third of the second camera, away from the texts
    np.testing.assert_allclose(middle[CAPTION + 96], 120, atol=6)  # the reference is two steps ahead
    np.testing.assert_allclose(middle[CAPTION + 288], 40, atol=6)
    assert frames[4, CAPTION + 96, 400].max() < 10  # black: the reference has ended
    assert Image.open(sheet).size == (N * 64, CAPTION + 6 * 64)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["contact_sheet.png", "rollout.mp4"]


def test_a_missing_camera_is_named(episode, tmp_path):
    del episode.images["wrist_image_left"]
    with pytest.raises(EpisodeError, match="lacks the camera 'wrist_image_left'"):
        render(episode, tmp_path)


def test_the_command_renders_any_source_beside_it(episode, tmp_path):
    episode.save(tmp_path / "mine.safetensors")
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    result = command.run(
        parser.parse_args([str(tmp_path / "mine.safetensors"), "--reference", "droid", "--start", "9"])
    )
    assert result["video"] == str(tmp_path / "mine" / "rollout.mp4")
    assert read_video(tmp_path / "mine" / "rollout.mp4").shape[1] == CAPTION + 2 * 192
    with pytest.raises(EpisodeError, match="nothing to render"):
        command.run(parser.parse_args([""]))
