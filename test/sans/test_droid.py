"""DROID episodes as published, and every other place an episode can come from."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from wvl_ros.errors import EpisodeError
from wvl_ros.sans.droid import read_droid
from wvl_ros.sans.sources import EXAMPLE_FOLDER, load_source, source_text, split_source
from wvl_ros.worlds.droid import CAMERAS, forward_kinematics


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(EXAMPLE_FOLDER, tmp_path / "episode")


def test_the_shipped_episode_is_whole_and_consistent():
    episode = load_source("droid")
    assert (len(episode), episode.image_stride, episode.success) == (167, 3, True)
    assert set(episode.images) == set(CAMERAS)
    assert episode.images["wrist_image_left"].shape == (56, 192, 320, 3)
    for step in (0, 80, 166):  # two independent columns of the recording
        np.testing.assert_allclose(
            forward_kinematics(episode.joint_position[step])[:3], episode.cartesian_position[step, :3], atol=1e-5
        )
    assert (EXAMPLE_FOLDER / "CREDIT.md").read_text().count("CC BY 4.0") == 1


def test_a_file_saved_from_it_is_a_source_as_well(tmp_path):
    episode = load_source("droid")
    episode.save(tmp_path / "episode.safetensors")
    again = load_source(str(tmp_path / "episode.safetensors"))
    np.testing.assert_array_equal(again.action, episode.action)


@pytest.mark.parametrize("text", ["", "tabletop"])
def test_a_fresh_reset_is_no_episode(text):
    assert load_source(text) is None


def test_a_wrong_place_is_named_with_what_would_be_right(tmp_path):
    with pytest.raises(EpisodeError, match=r"There is no episode at .*metadata\.yaml.*safetensors.*'droid'"):
        load_source(str(tmp_path))


def test_a_missing_camera_a_short_video_and_a_missing_column_are_named(folder):
    note = json.loads((folder / "annotation.json").read_text())
    states = note.pop("observation.state.joint_position")
    (folder / "annotation.json").write_text(json.dumps(note))
    with pytest.raises(EpisodeError, match=r"lacks 'observation\.state\.joint_position'"):
        read_droid(folder)
    (folder / "annotation.json").write_text(json.dumps(note | {"observation.state.joint_position": states[:100]}))
    with pytest.raises(EpisodeError, match="56 frames where 100 states"):
        read_droid(folder)
    (folder / "wrist_image_left.mp4").unlink()
    with pytest.raises(EpisodeError, match=r"lacks the video .*wrist_image_left"):
        read_droid(folder)


def test_source_and_start_in_one_text():
    assert split_source(source_text("/data/my@home", 30)) == ("/data/my@home", 30)
    assert split_source(source_text("droid", 0)) == ("droid", 0)
    assert source_text("", 5) == ""
