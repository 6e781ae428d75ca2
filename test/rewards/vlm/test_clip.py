"""The frames a judge sees: evenly spread, first and last among them, cameras side by side."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from wvl_ros.errors import EpisodeError
from wvl_ros.rewards.vlm.clip import cut
from wvl_ros.sans.episode import Episode
from wvl_ros.worlds.droid import CAMERAS


def test_sixteen_frames_are_spread_from_first_to_last(make_episode: Callable[..., Episode]) -> None:
    episode = make_episode(steps=100)  # 34 images, every third step at 15 Hz
    clip = cut(episode, CAMERAS[:1], 16)
    assert clip.frames.shape == (16, 64, 64, 3)
    rows = np.rint(clip.seconds * 15 / 3).astype(int)
    assert (rows[0], rows[-1]) == (0, 33)
    assert set(np.diff(rows)) <= {2, 3}
    assert np.array_equal(clip.frames, episode.images[CAMERAS[0]][rows])
    assert clip.interval == pytest.approx(99 / 15 / 15)


def test_a_short_episode_is_shown_whole(make_episode: Callable[..., Episode]) -> None:
    assert cut(make_episode(steps=10), CAMERAS[:1], 16).seconds.tolist() == pytest.approx([0.0, 0.2, 0.4, 0.6])
    alone = cut(make_episode(steps=1), CAMERAS[:1], 16)
    assert len(alone.frames) == 1
    assert alone.interval == 0.0


def test_cameras_stand_side_by_side_at_one_height(make_episode: Callable[..., Episode]) -> None:
    episode = make_episode(steps=10)
    episode.images[CAMERAS[2]] = np.repeat(episode.images[CAMERAS[2]], 2, axis=1).repeat(2, axis=2)[:, :, :96]
    frames = cut(episode, (CAMERAS[2], CAMERAS[0]), 4).frames
    assert frames.shape == (4, 128, 96 + 128, 3)
    assert np.array_equal(frames[:, :, :96], episode.images[CAMERAS[2]])
    assert np.abs(frames[:, :, 96:].mean((1, 2)) - episode.images[CAMERAS[0]].mean((1, 2))).max() < 1


def test_a_missing_camera_is_one_sentence(make_episode: Callable[..., Episode]) -> None:
    episode = make_episode()
    del episode.images[CAMERAS[1]]
    with pytest.raises(EpisodeError, match=f"'synthetic_0' lacks the camera '{CAMERAS[1]}'; it has: {CAMERAS[0]}"):
        cut(episode, CAMERAS[:2], 16)
