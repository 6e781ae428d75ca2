"""A SANS dataset in openpi's layout: read back with pyarrow, and its velocities executed as DROID executes them."""

from __future__ import annotations

import fcntl
import io
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from wvl_ros.cli import main
from wvl_ros.errors import DatasetError, EpisodeError
from wvl_ros.sans.collect import collect_episode
from wvl_ros.sans.dataset import Dataset
from wvl_ros.sans.episode import Episode
from wvl_ros.sans.lerobot import read_lerobot
from wvl_ros.sans.openpi_export import export_openpi, joint_velocities, picture_size
from wvl_ros.sans.store.format import DatasetFormat
from wvl_ros.worlds import droid
from wvl_ros.worlds.droid import CAMERAS
from wvl_ros.worlds.experts import Skill
from wvl_ros.worlds.tabletop import TabletopWorld

Make = Callable[..., Episode]
LENGTHS = (13, 13, 7, 13)
TEXTS = ("push it", "stack it", "push it", "sweep it")
OUTCOMES = ("success", "failure", "success", "success")


@pytest.fixture
def dataset(tmp_path: Path, make_episode: Make) -> Dataset:
    """Four episodes, the second a failure, with an image every third step."""
    made = Dataset.create(tmp_path / "sans", DatasetFormat(dict.fromkeys(CAMERAS, (64, 64)), codec="lossless"))
    for seed, (steps, text, outcome) in enumerate(zip(LENGTHS, TEXTS, OUTCOMES, strict=True)):
        made.append(make_episode(steps=steps, seed=seed, instruction=text, outcome=outcome))
    return made


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_folder_holds_what_openpi_reads(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "openpi" / "pushes"
    assert main(["export", str(dataset.root), "--openpi", str(out)]) == 0
    text = capsys.readouterr().out
    assert f"repo_id=pushes in pi05_droid_finetune, with HF_LEROBOT_HOME={tmp_path / 'openpi'}" in text
    assert "Left out: 1 not labelled a success" in text
    info = json.loads((out / "meta" / "info.json").read_text())
    assert (info["codebase_version"], info["fps"], info["splits"]) == ("v2.1", 15, {"train": "0:3"})
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"], info["total_chunks"]) == (3, 33, 2, 1)
    assert info["features"]["wrist_image_left"] == {
        "dtype": "image",
        "shape": [64, 64, 3],
        "names": ["height", "width", "channel"],
    }
    assert info["features"]["actions"] == {"dtype": "float32", "shape": [8], "names": ["actions"]}
    assert lines(out / "meta" / "tasks.jsonl") == [
        {"task_index": 0, "task": "push it"},
        {"task_index": 1, "task": "sweep it"},
    ]
    episodes = lines(out / "meta" / "episodes.jsonl")
    assert [(row["tasks"], row["length"], row["episode_id"]) for row in episodes] == [
        (["push it"], 13, "synthetic_0"),
        (["push it"], 7, "synthetic_2"),
        (["sweep it"], 13, "synthetic_3"),
    ]
    first = 0
    for row, index, task in zip(episodes, (0, 2, 3), (0, 0, 1), strict=True):
        episode, n, number = dataset.read(index), row["length"], row["episode_index"]
        path = out / info["data_path"].format(episode_chunk=0, episode_index=number)
        table = pq.read_table(path)
        assert set(table.column_names) == set(info["features"])
        assert table.schema.field("joint_position").type == pa.list_(pa.float32(), 7)
        assert table.schema.field("gripper_position").type == pa.float32()  # of shape (1,), as LeRobot keeps it
        described = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
        assert described["exterior_image_1_left"] == {"_type": "Image"}
        assert described["actions"]["_type"] == "Sequence"  # also known to `datasets` before 4
        columns = {name: np.array(table[name].to_pylist()) for name in table.column_names if name not in CAMERAS}
        np.testing.assert_array_equal(columns["joint_position"], episode.joint_position.astype(np.float32))
        np.testing.assert_array_equal(columns["gripper_position"], episode.gripper_position[:, 0].astype(np.float32))
        grippers = [*episode.action[:, 6], episode.action[-1, 6]]
        np.testing.assert_array_equal(columns["actions"][:, 7], np.asarray(grippers, np.float32))
        np.testing.assert_allclose(columns["timestamp"], np.arange(n) / 15, atol=1e-6)
        np.testing.assert_array_equal(columns["frame_index"], np.arange(n))
        np.testing.assert_array_equal(columns["index"], first + np.arange(n))
        assert set(columns["episode_index"]) == {number}
        assert set(columns["task_index"]) == {task}
        for camera in CAMERAS:
            for step, cell in enumerate(table[camera].to_pylist()):
                picture = np.asarray(Image.open(io.BytesIO(cell["bytes"])))
                np.testing.assert_array_equal(picture, episode.images[camera][step // 3])  # held between two
        first += n


def test_statistics_are_those_of_the_columns(dataset: Dataset, tmp_path: Path) -> None:
    out = export_openpi(dataset, tmp_path / "out").root
    rows = lines(out / "meta" / "episodes_stats.jsonl")
    assert [row["episode_index"] for row in rows] == [0, 1, 2]
    columns = pq.read_table(out / "data/chunk-000/episode_000001.parquet")
    for name in ("actions", "joint_position", "timestamp"):
        values, stats = np.array(columns[name].to_pylist()).reshape(7, -1), rows[1]["stats"][name]
        assert set(stats) == {"min", "max", "mean", "std", "count"}
        for key in ("min", "max", "mean", "std"):
            np.testing.assert_allclose(stats[key], getattr(values, key)(0), atol=1e-6)
        assert stats["count"] == [7]
    images = dataset.read(2).images["wrist_image_left"] / 255
    stats = rows[1]["stats"]["wrist_image_left"]
    assert np.shape(stats["mean"]) == (3, 1, 1)
    np.testing.assert_allclose(np.ravel(stats["mean"]), images.mean((0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(np.ravel(stats["std"]), images.std((0, 1, 2)), atol=1e-6)


def test_our_own_reader_of_lerobot_datasets_finds_its_episodes(dataset: Dataset, tmp_path: Path) -> None:
    out = export_openpi(dataset, tmp_path / "out", everything=True).root
    loaded = [load() for _, load in read_lerobot(out)]
    assert [episode.instruction for episode in loaded] == list(TEXTS)
    assert [row["outcome"] for row in lines(out / "meta" / "episodes.jsonl")] == list(OUTCOMES)
    for index, episode in enumerate(loaded):
        stored = dataset.read(index)
        np.testing.assert_allclose(episode.joint_position, stored.joint_position, atol=1e-6)
        meant = np.stack([droid.forward_kinematics(target) for target in episode.action[:, :7]])
        np.testing.assert_allclose(meant[:, :3], stored.action[: len(meant), :3], atol=1e-4)
        np.testing.assert_array_equal(episode.images["wrist_image_left"][::3], stored.images["wrist_image_left"])


def test_pictures_of_droid_s_shape_get_droid_s_size(tmp_path: Path, make_episode: Make) -> None:
    sizes = dict(zip(CAMERAS, [(360, 640), (192, 320), (128, 128)], strict=True))
    dataset = Dataset.create(tmp_path / "sans", DatasetFormat(sizes, codec="lossless"))
    flat = {camera: np.full((3, *size, 3), 40 * (i + 1), np.uint8) for i, (camera, size) in enumerate(sizes.items())}
    dataset.append(replace(make_episode(steps=3), images=flat, image_stride=1))
    out = export_openpi(dataset, tmp_path / "out").root
    features = json.loads((out / "meta" / "info.json").read_text())["features"]
    table = pq.read_table(out / "data/chunk-000/episode_000000.parquet")
    for i, (camera, shape) in enumerate(zip(CAMERAS, [(180, 320, 3), (180, 300, 3), (128, 128, 3)], strict=True)):
        picture = np.asarray(Image.open(io.BytesIO(table[camera][2].as_py()["bytes"])))
        np.testing.assert_array_equal(picture, np.full(shape, 40 * (i + 1)))
        assert features[camera]["shape"] == list(shape)


@given(st.integers(16, 2000), st.integers(16, 2000))
def test_pictures_keep_their_proportions_and_never_grow(height: int, width: int) -> None:
    small = picture_size(height, width)
    assert small[0] <= min(height, 180)
    assert small[1] <= min(width, 320)
    assert small == (height, width) or small[0] == 180 or small[1] == 320
    assert abs(small[0] / height - small[1] / width) <= 0.5 / height + 0.5 / width


@given(st.integers(0, 10_000), st.integers(2, 12), st.floats(0.0, 0.1), st.floats(0.0, 0.1))
@settings(max_examples=40)
def test_droid_s_executor_sets_the_recorded_commands_again(seed: int, steps: int, speed: float, lag: float) -> None:
    """It sets the target to the measured joints + 0.2 v; whatever the lag, the flange's pose there is the command."""
    rng = np.random.default_rng(seed)
    joints = droid.RESET_JOINTS + np.cumsum(rng.uniform(-speed, speed, (steps, 7)), axis=0)
    commanded = joints[1:] + rng.uniform(-lag, lag, (steps - 1, 7))
    poses = np.stack([droid.forward_kinematics(q) for q in commanded])
    velocities, limited = joint_velocities(joints, poses)
    assert velocities.shape == (steps, 7)
    assert np.abs(velocities).max() <= 1.0 + 1e-12
    targets = joints + droid.MAX_JOINT_DELTA * velocities.astype(np.float32)
    reached = 0
    for target, pose in zip(targets, [*poses, poses[-1]], strict=True):
        error = droid.pose_velocity(droid.forward_kinematics(target), pose) * np.repeat([0.075, 0.15], 3)
        reached += int(np.abs(error).max() < 1e-4)  # m and rad
    assert reached == steps - limited
    if speed + lag < 0.05:
        assert limited == 0


def test_a_command_out_of_reach_is_approached_straight() -> None:
    start = np.repeat(droid.RESET_JOINTS[None], 2, axis=0)
    pose = droid.forward_kinematics(droid.RESET_JOINTS + np.array([0.5, 0, 0, 0.25, 0, 0, 0]))
    velocities, limited = joint_velocities(start, pose[None])
    assert limited == 2
    np.testing.assert_allclose(np.abs(velocities).max(axis=1), 1.0)
    ahead = [droid.forward_kinematics(start[0] + 0.2 * steps * velocities[0]) for steps in np.linspace(1, 4, 3001)]
    distances = np.linalg.norm(np.array(ahead)[:, :3] - pose[:3], axis=1)
    assert distances[0] > 0.04
    assert distances.min() < 1e-3  # going on like that leads there


def test_an_expert_s_episode_succeeds_again_by_its_exported_velocities(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the tabletop to SANS to openpi's folder, and from there to the arm as DROID executes joint velocities."""
    dataset = Dataset.create(tmp_path / "sans", DatasetFormat(dict.fromkeys(CAMERAS, (32, 32))))
    world = TabletopWorld("push", 32, 32, image_stride=3)
    commanded: list[np.ndarray] = []
    step = world.step

    def watched(action: np.ndarray) -> Any:
        result = step(action)
        commanded.append(world.commanded_joints.copy())
        return result

    monkeypatch.setattr(world, "step", watched)
    try:
        dataset.append(collect_episode(world, "push", 11, Skill(), 50))
    finally:
        world.close()
    report = export_openpi(dataset, tmp_path / "out")
    assert report.limited == 0
    assert report.response == pytest.approx(1.0, abs=0.15)  # the tabletop's servo is stiff
    table = pq.read_table(report.root / "data/chunk-000/episode_000000.parquet", columns=["actions", "joint_position"])
    actions, joints = (np.array(table[name].to_pylist()) for name in ("actions", "joint_position"))
    targets = joints + droid.MAX_JOINT_DELTA * actions[:, :7]
    np.testing.assert_allclose(targets[:-1], commanded, atol=4e-3)
    again = TabletopWorld("push", cameras=False, action_space="joint_position")
    observation, _ = again.reset(seed=11, options={"task": "push"})
    succeeded = False
    for t, action in enumerate(actions[:-1]):
        np.testing.assert_allclose(observation["joint_position"], joints[t], atol=0.02)
        target = observation["joint_position"] + droid.MAX_JOINT_DELTA * action[:7]
        observation, _, terminated, _, _ = again.step(np.append(target, action[7]))
        succeeded = succeeded or terminated
    assert succeeded


def test_the_response_is_the_share_of_a_command_that_the_arm_covers(tmp_path: Path, make_episode: Make) -> None:
    dataset = Dataset.create(tmp_path / "sans", DatasetFormat(dict.fromkeys(CAMERAS, (64, 64))))
    drift = np.array([0.01, -0.02, 0.005, 0.015, 0.0, -0.01, 0.02])
    joints = droid.RESET_JOINTS + drift * np.arange(31.0)[:, None]
    targets = joints[:-1] + drift / 0.3  # of which it covers 0.3
    poses = np.stack([droid.forward_kinematics(q) for q in targets])
    slow = make_episode(steps=31)
    action = np.hstack([poses, slow.action[:, 6:]])
    dataset.append(replace(slow, joint_position=joints, action=action, commanded_start=None))
    assert export_openpi(dataset, tmp_path / "slow").response == pytest.approx(0.3, abs=0.03)
    still = Dataset.create(tmp_path / "still", dataset.format)
    rest = np.repeat(joints[:1], 31, axis=0)
    pose = np.repeat(droid.forward_kinematics(rest[0])[None], 30, axis=0)
    still.append(replace(slow, joint_position=rest, action=np.hstack([pose, slow.action[:, 6:]]), commanded_start=None))
    assert export_openpi(still, tmp_path / "out").response is None


def test_an_export_that_fails_leaves_nothing_and_can_be_done_again(dataset: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "out"
    video = next(dataset.root.glob("videos/*wrist*/chunk-000/file-002.mp4"))
    whole = video.read_bytes()
    video.write_bytes(whole[:-9])
    with pytest.raises(DatasetError, match=r"file-002\.mp4"):
        export_openpi(dataset, out)
    assert not out.exists()
    assert not list(tmp_path.glob(".*"))
    video.write_bytes(whole)
    left = tmp_path / ".out.part" / "data"  # of an export that was killed
    left.mkdir(parents=True)
    (left / "episode_000009.parquet").write_bytes(b"half")
    (tmp_path / ".out.part" / "meta.json").write_bytes(b"half")
    out.mkdir()  # empty, so nothing is lost
    counts: list[int] = []
    assert export_openpi(Dataset.open(dataset.root), out, progress=counts.append).episodes == 3
    assert counts == [3, 3, 3]
    assert sorted(path.name for path in out.iterdir()) == ["data", "meta"]
    assert len(list(out.rglob("*.parquet"))) == 3
    assert not list(tmp_path.glob(".*"))


def test_folders_that_cannot_be_written_are_refused(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").touch()
    with pytest.raises(DatasetError, match="is there already; choose another folder"):
        export_openpi(dataset, tmp_path / "taken")
    (tmp_path / "file").touch()
    with pytest.raises(DatasetError, match="is there already"):
        export_openpi(dataset, tmp_path / "file")
    with pytest.raises(DatasetError, match=r"cannot be written to .*: Not a directory"):
        export_openpi(dataset, tmp_path / "file" / "out")
    part = tmp_path / ".out.part"
    part.mkdir()
    lock = os.open(part, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        with pytest.raises(DatasetError, match="Another export is writing"):
            export_openpi(dataset, tmp_path / "out")
    finally:
        os.close(lock)
    assert part.is_dir()


def test_datasets_without_what_openpi_needs_are_refused(tmp_path: Path, make_episode: Make) -> None:
    sizes = dict.fromkeys(CAMERAS, (64, 64))
    with pytest.raises(EpisodeError, match="openpi wants DROID's camera 'wrist_image_left'"):
        export_openpi(
            Dataset.create(tmp_path / "a", DatasetFormat({c: s for c, s in sizes.items() if "wrist" not in c})),
            tmp_path / "out",
        )
    with pytest.raises(EpisodeError, match=r"openpi wants 15 steps a second; .* has 10"):
        export_openpi(Dataset.create(tmp_path / "b", DatasetFormat(sizes, fps=10)), tmp_path / "out")
    dataset = Dataset.create(tmp_path / "c", DatasetFormat(sizes))
    with pytest.raises(DatasetError, match=r"has no episode to export \(none at all\)"):
        export_openpi(dataset, tmp_path / "out")
    dataset.append(make_episode(seed=1, outcome="failure"))
    dataset.append(make_episode(seed=2, instruction=" "))
    dataset.append(make_episode(seed=3, steps=1))
    reasons = "1 not labelled a success, 1 without an instruction, 1 without an action"
    with pytest.raises(DatasetError, match=rf"\({reasons}\); label successes with wvl label, or add --all"):
        export_openpi(dataset, tmp_path / "out")
    assert export_openpi(dataset, tmp_path / "out", everything=True).episodes == 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["SANS", "--openpi", "OUT", "--episode", "1"], "--openpi exports a whole dataset; leave out the episode"),
        (["SANS#1", "--openpi", "OUT"], "--openpi exports a whole dataset; leave out the episode"),
        (["SANS", "--bag", "OUT", "--all"], "--all goes with --openpi"),
        (["OUT", "--openpi", "OUT"], "no SANS dataset"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    words = [word.replace("SANS", str(dataset.root)).replace("OUT", str(tmp_path / "out")) for word in words]
    assert main(["export", *words]) == 2
    assert sentence in capsys.readouterr().err
