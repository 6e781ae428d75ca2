"""A dataset gives back what was appended, refuses what does not fit, and is the folder that LeRobot expects."""

from __future__ import annotations

import json
import pickle
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wvl_ros.errors import DatasetError
from wvl_ros.sans.dataset import Dataset, DatasetFormat, is_dataset
from wvl_ros.sans.episode import OUTCOMES, Episode
from wvl_ros.worlds import droid
from wvl_ros.worlds.recorded import commanded_poses

SIZE = dict.fromkeys(droid.CAMERAS, (64, 64))
ARRAYS = ("joint_position", "cartesian_position", "gripper_position", "action", "reward", "commanded_start")
FACTS = ("task", "instruction", "outcome", "outcome_source", "source", "policy", "world_model", "iteration", "fps")


def check_same(got: Episode, expected: Episode, images: bool = True) -> None:
    for name in ARRAYS:
        a, b = getattr(got, name), getattr(expected, name)
        assert a.dtype == b.dtype, name
        assert np.array_equal(a, b), name
    for name in (*FACTS, "episode_id", "image_stride", "extra"):
        assert getattr(got, name) == getattr(expected, name), name
    if images:
        for camera, stack in expected.images.items():
            assert np.array_equal(got.images[camera], stack)


@pytest.mark.parametrize("stride", [1, 3])
def test_lossless_episode_comes_back_exactly(tmp_path: Path, make_episode: Callable[..., Episode], stride: int) -> None:
    episode = make_episode(steps=14)  # the last image stands for two steps
    if stride == 1:
        images = {camera: stack.repeat(3, 0)[:14] for camera, stack in episode.images.items()}
        episode = replace(episode, images=images, image_stride=1)
    episode = replace(episode, policy="p", world_model="w", iteration=3, extra={"seed": 7}, outcome_source="world")
    dataset = Dataset.create(tmp_path / "sans", DatasetFormat(SIZE, codec="lossless"))
    assert dataset.append(episode, origin="bag 1", report={"skew_ms": 2.5}) == 0
    check_same(Dataset.open(tmp_path / "sans").read(0), episode)
    record = Dataset.open(tmp_path / "sans").records[0]
    assert (record.length, record.origin, record.report, record.iteration) == (14, "bag 1", {"skew_ms": 2.5}, 3)
    assert dataset.read(0, images=False).images == {}
    assert dataset.verify() == []


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_numbers_of_any_episode_come_back_exactly(tmp_path: Path, data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 20))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    text = st.text(st.characters(codec="utf-8"), max_size=20)
    episode = Episode(
        images={},
        joint_position=rng.normal(size=(n, 7)) * 10.0 ** rng.integers(-300, 3),
        cartesian_position=rng.normal(size=(n, 6)),
        gripper_position=rng.random((n, 1)),
        action=rng.normal(size=(n - 1, 7)),
        reward=rng.normal(size=n - 1).astype(np.float32),
        task=data.draw(text),
        instruction=data.draw(text),
        outcome=data.draw(st.sampled_from(OUTCOMES)),
        source=data.draw(text),
        episode_id="x" + data.draw(text),
        image_stride=data.draw(st.integers(1, 4)),
        commanded_start=rng.normal(size=7),
        extra=data.draw(st.dictionaries(text, st.one_of(st.integers(-(2**40), 2**40), text, st.booleans()))),
    )
    dataset = Dataset.open_or_create(tmp_path / "sans", DatasetFormat({}))
    check_same(dataset.read(dataset.append(episode)), episode)


def test_the_default_codec_keeps_38_decibels(tmp_path: Path) -> None:
    from wvl_ros.sans.sources import load_source

    episode = load_source("droid")
    assert episode is not None
    short = {camera: stack[:8] for camera, stack in episode.images.items()}
    episode = replace(
        episode,
        images=short,
        **{name: getattr(episode, name)[: 22 - (name in ("action", "reward"))] for name in ARRAYS[:5]},
    )
    dataset = Dataset.create(tmp_path / "sans", DatasetFormat({c: s.shape[1:3] for c, s in short.items()}))
    dataset.append(episode)
    for camera, stack in dataset.read(0).images.items():
        error = (stack.astype(float) - short[camera]) ** 2
        assert 10 * np.log10(255**2 / error.mean((1, 2, 3))).min() > 38


def test_other_action_spaces_are_stored_as_commanded_poses(
    tmp_path: Path, make_episode: Callable[..., Episode]
) -> None:
    episode = make_episode()
    actions = np.hstack([episode.joint_position[1:], episode.gripper_position[1:]])
    episode = replace(episode, action=actions, action_space="joint_position", images={})
    dataset = Dataset.create(tmp_path / "sans", DatasetFormat({}))
    dataset.append(episode)
    stored = dataset.read(0)
    assert stored.action_space == "cartesian_position"
    assert np.array_equal(stored.action, commanded_poses(episode)[1:])
    assert stored.extra["recorded_action_space"] == "joint_position"


def test_a_label_moves_the_rewards_too(tmp_path: Path, make_episode: Callable[..., Episode]) -> None:
    dataset = Dataset.create(tmp_path / "sans", DatasetFormat(SIZE))
    for seed, outcome in enumerate(["success", "", "failure"]):
        dataset.append(make_episode(seed=seed, outcome=outcome))
    reader = Dataset.open(tmp_path / "sans")
    dataset.label(0, "near_success")
    dataset.label(1, "success", source="reward_model")
    assert not dataset.read(0).reward.any()
    assert dataset.read(1).reward.tolist() == [0.0] * 11 + [1.0]
    assert (dataset.records[1].outcome, dataset.records[1].outcome_source) == ("success", "reward_model")
    assert reader.read(0).outcome == "near_success"  # it had the older state
    assert dataset.verify() == []
    stats = json.loads((tmp_path / "sans/meta/stats.json").read_text())
    assert stats["reward"]["mean"] == pytest.approx([1 / 39])
    with pytest.raises(DatasetError, match="cannot be 'won'"):
        dataset.label(0, "won")


def test_a_fingerprint_is_added_once(tmp_path: Path, make_episode: Callable[..., Episode]) -> None:
    dataset = Dataset.create(tmp_path / "sans", DatasetFormat(SIZE))
    assert [dataset.append(make_episode(), fingerprint=key) for key in ("a", "b", "a")] == [0, 1, 0]
    assert len(Dataset.open(tmp_path / "sans")) == 2


def test_another_format_is_refused_by_both_names(tmp_path: Path) -> None:
    Dataset.create(tmp_path / "sans", DatasetFormat(SIZE))
    for other in (DatasetFormat(SIZE, fps=30), DatasetFormat(SIZE, codec="lossless"), DatasetFormat({"top": (64, 64)})):
        with pytest.raises(DatasetError) as error:
            Dataset.open_or_create(tmp_path / "sans", other)
        assert str(DatasetFormat(SIZE)) in str(error.value)
        assert str(other) in str(error.value)
    assert Dataset.open_or_create(tmp_path / "sans", DatasetFormat(SIZE)).records == ()


def test_what_does_not_fit_is_refused_and_leaves_nothing(tmp_path: Path, make_episode: Callable[..., Episode]) -> None:
    dataset = Dataset.create(tmp_path / "sans", DatasetFormat(SIZE))
    episode = make_episode()
    two = {camera: episode.images[camera] for camera in droid.CAMERAS[:2]}
    for wrong, words in (
        (replace(episode, images=two), "has the cameras"),
        (make_episode(size=32), "shape"),
        (replace(episode, fps=30.0), "steps a second"),
        (replace(episode, extra={"x": float("nan")}), "JSON"),
    ):
        with pytest.raises(DatasetError, match=words):
            dataset.append(wrong)
    with dataset.draft() as draft:
        draft.add_image(droid.CAMERAS[0], episode.images[droid.CAMERAS[0]][0])
        with pytest.raises(DatasetError, match="call for"):
            draft.commit(replace(episode, images={}, image_stride=1))
        with pytest.raises(DatasetError, match="no camera"):
            draft.add_image("top", episode.images[droid.CAMERAS[0]][0])
    assert len(dataset) == 0
    assert dataset.verify() == []
    assert list((tmp_path / "sans/meta/.drafts").iterdir()) == []


def test_other_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/cat.jpg").touch()
    with pytest.raises(DatasetError, match="not empty"):
        Dataset.create(tmp_path / "photos", DatasetFormat(SIZE))
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["cat.jpg"]
    with pytest.raises(DatasetError, match="no SANS dataset"):
        Dataset.open(tmp_path / "nothing")
    with pytest.raises(DatasetError, match="no episode 0"):
        Dataset.create(tmp_path / "new", DatasetFormat({})).read(0)
    with pytest.raises(DatasetError, match="already"):
        Dataset.create(tmp_path / "new", DatasetFormat({}))
    assert is_dataset(tmp_path / "new")
    assert not is_dataset(tmp_path / "photos")


def test_cameras_may_be_added_from_threads(tmp_path: Path, make_episode: Callable[..., Episode]) -> None:
    episode = make_episode()
    dataset = Dataset.create(tmp_path / "sans", DatasetFormat(SIZE, codec="lossless"))
    with dataset.draft(image_stride=3) as draft:

        def add(camera: str) -> None:
            for image in episode.images[camera]:
                draft.add_image(camera, image)

        threads = [threading.Thread(target=add, args=(camera,)) for camera in droid.CAMERAS]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        index = draft.commit(replace(episode, images={}))
    # As it reaches the workers of a DataLoader; only what was pickled here is read.
    check_same(pickle.loads(pickle.dumps(dataset)).read(index), episode)


def test_lerobot_finds_its_files(tmp_path: Path, make_episode: Callable[..., Episode]) -> None:
    root = tmp_path / "sans"
    dataset = Dataset.create(root, DatasetFormat(SIZE))
    for seed in range(3):
        dataset.append(make_episode(steps=10 + seed, seed=seed, instruction=f"do {seed % 2}"))
    info = json.loads((root / "meta/info.json").read_text())
    assert (info["codebase_version"], info["fps"]) == ("v3.0", 15)
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"]) == (3, 33, 2)
    assert info["splits"] == {"train": "0:3"}
    rows = pq.read_table(root / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [row["dataset_from_index"] for row in rows] == [0, 10, 21]
    tasks = pq.read_table(root / "meta/tasks.parquet")
    assert json.loads(tasks.schema.metadata[b"pandas"])["index_columns"] == ["task"]
    for row in rows:
        data = pq.read_table(root / info["data_path"].format(chunk_index=0, file_index=row["data/file_index"]))
        columns = {name for name, feature in info["features"].items() if feature["dtype"] != "video"}
        assert set(data.column_names) == columns
        assert data["index"].to_pylist() == list(range(row["dataset_from_index"], row["dataset_to_index"]))
        assert tasks["task"].to_pylist()[data["task_index"][0].as_py()] == row["tasks"][0]
        assert data["next.done"].to_pylist() == [False] * (row["length"] - 1) + [True]
    stats = json.loads((root / "meta/stats.json").read_text())
    assert np.shape(stats["observation.images.wrist_image_left"]["q50"]) == (3, 1, 1)
    everything = np.concatenate([dataset.read(i).joint_position for i in range(3)])
    numbers = stats["observation.state.joint_position"]
    assert numbers["mean"] == pytest.approx(everything.mean(0))
    assert numbers["std"] == pytest.approx(everything.std(0))
    assert numbers["max"] == everything.max(0).tolist()
    assert numbers["count"] == [33]


def test_many_episodes_go_into_several_tables(
    tmp_path: Path, make_episode: Callable[..., Episode], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("catalog", "updates", "verification"):
        monkeypatch.setattr(f"wvl_ros.sans.store.{module}.EPISODES_PER_FILE", 2)
    dataset = Dataset.create(tmp_path / "sans", DatasetFormat({}))
    for seed in range(5):
        dataset.append(replace(make_episode(seed=seed), images={}))
    dataset.label(1, "failure")
    assert len(list((tmp_path / "sans/meta/episodes").rglob("*.parquet"))) == 3
    again = Dataset.open(tmp_path / "sans")
    assert [record.outcome for record in again.records] == ["success", "failure", *["success"] * 3]
    assert [again.read(i).episode_id for i in range(5)] == [f"synthetic_{i}" for i in range(5)]
    assert again.verify() == []
