"""Episodes on disk: they come back as they were, or a sentence says why not."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wvl_ros.errors import EpisodeError
from wvl_ros.sans.episode import OUTCOMES, Episode
from wvl_ros.worlds.droid import CAMERAS


def make(steps: int = 7, stride: int = 3, seed: int = 0, **changes: object) -> Episode:
    rng = np.random.default_rng(seed)
    frames = (steps - 1) // stride + 1
    values: dict = {
        "images": {camera: rng.integers(0, 256, (frames, 8, 6, 3), np.uint8) for camera in CAMERAS},
        "joint_position": rng.normal(size=(steps, 7)),
        "cartesian_position": rng.normal(size=(steps, 6)),
        "gripper_position": rng.uniform(size=(steps, 1)),
        "action": rng.normal(size=(steps - 1, 7)),
        "reward": np.zeros(steps - 1, np.float32),
        "task": "pick_place",
        "instruction": "put the red cube on the yellow disk",
        "image_stride": stride,
    }
    return Episode(**(values | changes))


@settings(max_examples=25, deadline=None)
@given(
    steps=st.integers(1, 12),
    stride=st.integers(1, 4),
    outcome=st.sampled_from(OUTCOMES),
    instruction=st.text(max_size=40),
    extra=st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5) | st.booleans(), max_size=3),
)
def test_an_episode_survives_the_disk(tmp_path_factory, steps, stride, outcome, instruction, extra):
    episode = make(steps, stride, outcome=outcome, instruction=instruction, extra=extra)
    path = tmp_path_factory.mktemp("episode") / "a.safetensors"
    episode.save(path)
    loaded = Episode.load(path)
    for field in fields(Episode):
        before, after = getattr(episode, field.name), getattr(loaded, field.name)
        if field.name == "images":
            assert before.keys() == after.keys()
            assert all(np.array_equal(before[c], after[c]) for c in before)
        else:
            assert np.array_equal(before, after) if isinstance(before, np.ndarray) else before == after, field.name


def test_nothing_but_the_whole_file_is_left_behind(tmp_path: Path) -> None:
    make().save(tmp_path / "a.safetensors")
    with pytest.raises(TypeError):
        make(extra={"not": object()}).save(tmp_path / "b.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_the_observation_of_a_step_holds_the_latest_image() -> None:
    episode = make(7, 3)
    observation = episode.observation(5)
    assert np.array_equal(observation[CAMERAS[0]], episode.images[CAMERAS[0]][1])
    assert np.array_equal(observation["joint_position"], episode.joint_position[5])
    with pytest.raises(EpisodeError, match="steps 0 to 6; step 7"):
        episode.observation(7)
    del episode.images[CAMERAS[2]]
    with pytest.raises(EpisodeError, match="lacks the camera 'wrist_image_left'"):
        episode.observation(0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"joint_position": np.full((7, 7), np.nan)}, "joint_position holds NaN"),
        ({"action": np.zeros((7, 7))}, r"action should have the shape \(6, 7\)"),
        ({"outcome": "great"}, "outcome cannot be 'great'"),
        ({"action_space": "torque"}, "action space cannot be 'torque'"),
        ({"images": {CAMERAS[0]: np.zeros((2, 8, 6, 3), np.uint8)}}, "2 images where 7 steps call for 3"),
        ({"images": {CAMERAS[0]: np.zeros((3, 8, 6, 3), np.float32)}}, "should be uint8"),
    ],
)
def test_contradictions_are_refused(changes: dict, words: str) -> None:
    with pytest.raises(EpisodeError, match=words):
        make(**changes)


def test_foreign_missing_and_truncated_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(EpisodeError, match="cannot be read"):
        Episode.load(tmp_path / "none.safetensors")
    path = tmp_path / "a.safetensors"
    make().save(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(EpisodeError, match="cannot be read"):
        Episode.load(path)
    path.write_bytes(b"not an episode at all")
    with pytest.raises(EpisodeError, match="cannot be read"):
        Episode.load(path)
