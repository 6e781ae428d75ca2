"""An episode goes to a bag and comes back the same, number by number and pixel by pixel."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from rosbags.rosbag2 import Reader

from wvl_ros.cli import main
from wvl_ros.errors import EpisodeError
from wvl_ros.sans.bags.reader import read_bag
from wvl_ros.sans.bags.topics import STEP_TOPICS
from wvl_ros.sans.dataset import Dataset
from wvl_ros.sans.episode import Episode
from wvl_ros.sans.export import PERIOD, exact_finger, exact_quaternion, export_bag
from wvl_ros.sans.sources import load_source
from wvl_ros.sans.store.format import DatasetFormat
from wvl_ros.worlds.droid import CAMERAS, FINGER_TRAVEL
from wvl_ros.worlds.quaternion import quaternion_to_euler

NUMBERS = ("joint_position", "cartesian_position", "gripper_position", "action", "reward", "commanded_start")
TEXTS = ("task", "instruction", "outcome", "outcome_source", "source", "policy", "world_model", "iteration")


def same(a: Episode, b: Episode) -> None:
    """Equal to the last bit."""
    for name in NUMBERS:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
    for name in (*TEXTS, "image_stride", "fps", "episode_id", "action_space"):
        assert getattr(a, name) == getattr(b, name), name
    for camera in CAMERAS:
        np.testing.assert_array_equal(a.images[camera], b.images[camera])


@given(
    steps=st.integers(2, 12),
    stride=st.sampled_from([1, 2, 3]),
    seed=st.integers(0, 10_000),
    outcome=st.sampled_from(["success", "near_success", "failure", "aborted", ""]),
    iteration=st.integers(0, 9),
)
@example(steps=4, stride=1, seed=0, outcome="", iteration=0)
@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_bag_to_sans_to_bag_to_sans_is_the_same(
    steps: int, stride: int, seed: int, outcome: str, iteration: int, make_episode: Callable[..., Episode]
) -> None:
    rng = np.random.default_rng(seed)
    size = (DatasetFormat(dict.fromkeys(CAMERAS, (32, 48)), codec="lossless"), (32, 48, 3))
    count = (steps - 1) // stride + 1
    first = replace(
        make_episode(steps=steps, seed=seed, outcome="success" if outcome == "success" else "failure"),
        images={camera: rng.integers(0, 256, (count, *size[1]), np.uint8) for camera in CAMERAS},
        image_stride=stride, outcome=outcome, outcome_source="world" if outcome else "", iteration=iteration,
        policy="small",
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        dataset = Dataset.create(Path(folder) / "sans", size[0])
        for round_trip in range(2):
            report = export_bag(first, Path(folder) / str(round_trip), start=10**18)
            second = read_bag(report.bag)
            index = dataset.append(second)
            stored = dataset.read(index)
            same(stored, second)
            if round_trip:  # what a bag has held once stays as it is
                same(second, first)
            first = stored
        np.testing.assert_allclose(second.cartesian_position, stored.cartesian_position)
        assert dataset.verify() == []


@given(st.lists(st.floats(-1.4, 1.4), min_size=4, max_size=4), st.floats(0, 1))
@settings(max_examples=30)
def test_messages_read_as_the_numbers_they_were_made_of(turn: list[float], gripper: float) -> None:
    """Of poses and grippers that were once in a message; the hand points down, as the robot's does."""
    euler = quaternion_to_euler(exact_quaternion(np.array([np.pi, 0.0, 0.0]) + np.array(turn[:3]) * [0.2, 0.2, 1.0]))
    np.testing.assert_allclose(quaternion_to_euler(exact_quaternion(euler)), euler, rtol=0, atol=1e-15)
    once = 1.0 - exact_finger(gripper) / FINGER_TRAVEL
    assert abs(once - gripper) < 1e-15
    assert 1.0 - exact_finger(once) / FINGER_TRAVEL == once


def test_an_exported_bag_looks_like_a_recorded_one(
    tmp_path: Path, make_episode: Callable[..., Episode], capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = Dataset.create(tmp_path / "sans", DatasetFormat(dict.fromkeys(CAMERAS, (64, 64))))
    for seed in (1, 2):
        dataset.append(make_episode(seed=seed))
    assert main(["export", str(tmp_path / "sans"), "--episode", "1", "--bag", str(tmp_path / "out")]) == 0
    bag = tmp_path / "out" / "synthetic_2" / "bag"
    assert f"ros2 bag play {bag}" in capsys.readouterr().out
    with Reader(bag) as reader:
        kinds = {connection.topic: connection.msgtype for connection in reader.connections}
        assert {f"/real/{name}": kind for name, kind in STEP_TOPICS.items()}.items() <= kinds.items()
        count = {connection.topic: connection.msgcount for connection in reader.connections}
        assert count["/real/reward"] == 13
        assert count["/real/wrist_image_left/image_raw"] == 5
        stamps = sorted({stamp for connection, stamp, _ in reader.messages() if connection.topic == "/real/reward"})
    assert np.diff(stamps).tolist() == [PERIOD] * 12
    stored, read = load_source(f"{tmp_path / 'sans'}#synthetic_2"), load_source(str(bag))
    assert stored is not None
    assert read is not None
    assert (read.instruction, read.outcome, read.source) == (stored.instruction, stored.outcome, stored.source)
    np.testing.assert_array_equal(read.action, stored.action)
    np.testing.assert_allclose(read.cartesian_position, stored.cartesian_position, rtol=0, atol=1e-15)


def test_what_cannot_be_exported_is_said(tmp_path: Path, make_episode: Callable[..., Episode]) -> None:
    episode = make_episode()
    del episode.images["wrist_image_left"]
    with pytest.raises(EpisodeError, match="A bag of our nodes has the cameras"):
        export_bag(episode, tmp_path)
    dataset = Dataset.create(tmp_path / "sans", DatasetFormat(dict.fromkeys(CAMERAS, (64, 64))))
    with pytest.raises(EpisodeError, match="it holds none yet"):
        load_source(f"{tmp_path / 'sans'}#0")
    dataset.append(make_episode())
    with pytest.raises(EpisodeError, match="has no episode '7'; it has the episodes 0 to 0"):
        load_source(f"{tmp_path / 'sans'}#7")
    with pytest.raises(EpisodeError, match="name one of its episodes"):
        load_source(str(tmp_path / "sans"))
    assert list(tmp_path.glob(".*.part")) == []
