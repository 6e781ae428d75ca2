"""Writers that die, writers side by side, and full disks leave a sound dataset of whole episodes."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from wvl_ros.errors import DatasetError
from wvl_ros.sans.dataset import Dataset, DatasetFormat
from wvl_ros.sans.episode import Episode
from wvl_ros.sans.store import journal

CAMERA = "wrist_image_left"
FORMAT = DatasetFormat({CAMERA: (32, 32)})


def small(make_episode: Callable[..., Episode], seed: int = 0, steps: int = 10) -> Episode:
    episode = make_episode(steps=steps, seed=seed, size=32, instruction=f"do {seed}")
    episode.images = {CAMERA: episode.images[CAMERA]}
    return episode


def in_child(work: Callable[[], Any]) -> int:
    """Runs something in a forked process; its exit code, or minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def dying_at(call: int, work: Callable[[], Any]) -> int:
    """Like `in_child`, but the process dies before its `call`th rename, write-through or removal."""

    def mortal(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            nonlocal call
            call -= 1
            if call < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return wrapper

    def run() -> None:
        for name in ("replace", "rename", "unlink", "mkdir"):
            setattr(Path, name, mortal(getattr(Path, name)))
        os.fsync = mortal(os.fsync)
        shutil.rmtree = mortal(shutil.rmtree)
        work()

    return in_child(run)


def check_like_lerobot(root: Path) -> int:
    """Reads as LeRobot does, without locks or journal; the number of episodes, all of which must be whole."""
    info = json.loads((root / "meta/info.json").read_text())
    tasks = pq.read_table(root / "meta/tasks.parquet")["task"].to_pylist()
    if not info["total_episodes"]:
        return 0
    rows = pq.read_table(root / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    data = [pq.read_table(path) for path in sorted((root / "data").glob("*/*.parquet"))]
    index = [i for table in data for i in table["index"].to_pylist()]
    assert index[: info["total_frames"]] == list(range(info["total_frames"]))
    assert len(rows) >= info["total_episodes"]
    assert len(tasks) >= info["total_tasks"]
    for row in rows[: info["total_episodes"]]:
        assert data[row["episode_index"]].num_rows == row["length"]
        assert row["tasks"][0] == tasks[data[row["episode_index"]]["task_index"][0].as_py()]
        name = info["video_path"].format(
            video_key=f"observation.images.{CAMERA}", chunk_index=0, file_index=row["data/file_index"]
        )
        assert (root / name).is_file()
    return int(info["total_episodes"])


def test_a_writer_may_die_between_any_two_steps(tmp_path: Path, make_episode: Callable[..., Episode]) -> None:
    start = tmp_path / "start"
    episodes = [small(make_episode, seed) for seed in range(2)]
    Dataset.create(start, FORMAT).append(episodes[0])
    after = set()
    for call in range(100):
        root = tmp_path / f"dead_{call}"
        shutil.copytree(start, root)
        code = dying_at(call, lambda root=root: Dataset.open(root).append(episodes[1]))
        assert check_like_lerobot(root) in (1, 2)
        dataset = Dataset.open(root)
        after.add(len(dataset))
        for index in range(len(dataset)):
            assert np.array_equal(dataset.read(index).action, episodes[index].action)
        assert dataset.verify() == []  # mends it
        assert not list((root / "meta/.drafts").glob("*"))
        assert not (root / "meta/.journal").exists()
        shutil.rmtree(root)
        if code == 0:
            break
    assert code == 0
    assert call > 20
    assert after == {1, 2}


def test_a_label_is_whole_when_its_writer_dies(tmp_path: Path, make_episode: Callable[..., Episode]) -> None:
    start = tmp_path / "start"
    Dataset.create(start, FORMAT).append(small(make_episode))
    for call in range(100):
        root = tmp_path / f"dead_{call}"
        shutil.copytree(start, root)
        code = dying_at(call, lambda root=root: Dataset.open(root).label(0, "failure"))
        reader = Dataset.open(root)
        episode = reader.read(0)
        assert episode.outcome == reader.records[0].outcome in ("success", "failure")
        assert episode.reward.any() == (episode.outcome == "success")
        assert Dataset.open(root).verify() == []
        if code == 0:
            return
    raise AssertionError("it never ended")


def test_killed_at_random_moments(tmp_path: Path, make_episode: Callable[..., Episode]) -> None:
    root = tmp_path / "sans"
    Dataset.create(root, FORMAT)
    episodes = [small(make_episode, seed, steps=20 + seed) for seed in range(8)]
    rng = random.Random(0)

    def append_forever() -> None:
        while True:
            dataset = Dataset.open(root)
            dataset.append(episodes[len(dataset) % 8], fingerprint=str(len(dataset)))

    patience, before = 1.0, 0
    for kills in range(200):
        child = os.fork()
        if child == 0:
            append_forever()
        time.sleep(patience * (0.02 + 0.15 * rng.random()))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        dataset = Dataset.open(root)
        assert check_like_lerobot(root) <= len(dataset)
        if len(dataset) == before:
            patience *= 1.04  # a busy machine gets little done between two of them
        before = len(dataset)
        if kills >= 15 and len(dataset) > 5:
            break
    assert dataset.verify() == []
    assert len(dataset) > 5
    for index in range(len(dataset)):
        episode = dataset.read(index)
        assert np.array_equal(episode.action, episodes[index % 8].action)
        assert len(episode.images[CAMERA]) == (len(episode) - 1) // 3 + 1


def _write(root: Path, episodes: list[Episode], name: str) -> None:
    dataset = Dataset.open_or_create(root, FORMAT)
    for number, episode in enumerate(episodes):
        dataset.append(episode, origin=name, fingerprint=f"{name} {number}")


def test_two_writers_and_a_reader_at_once(tmp_path: Path, make_episode: Callable[..., Episode]) -> None:
    root = tmp_path / "sans"
    episodes = [small(make_episode, seed) for seed in range(6)]
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write, args=(root, episodes, name)) for name in "ab"]
    for writer in writers:
        writer.start()
    seen = 0
    while any(writer.is_alive() for writer in writers):
        if (root / "meta/sans.json").is_file():
            dataset = Dataset.open(root)
            assert len(dataset) >= seen
            seen = len(dataset)
            if seen:
                assert len(dataset.read(seen - 1)) == 10
    assert [writer.exitcode for writer in writers] == [0, 0]
    dataset = Dataset.open(root)
    assert dataset.verify() == []
    assert len(dataset) == 12
    for name in "ab":
        mine = [record.index for record in dataset.records if record.origin == name]
        assert [dataset.read(i).instruction for i in mine] == [f"do {seed}" for seed in range(6)]


def test_a_lock_that_is_kept_is_named(
    tmp_path: Path, make_episode: Callable[..., Episode], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = Dataset.create(tmp_path / "sans", FORMAT)
    again = journal.locked(dataset.root, timeout=0.05)
    with journal.locked(dataset.root), pytest.raises(DatasetError, match="Another process has held the lock"), again:
        raise AssertionError("it was locked twice")


def test_a_foreign_journal_is_not_followed(tmp_path: Path) -> None:
    from wvl_ros.sans.store.checked_files import dump_signed

    dataset = Dataset.create(tmp_path / "sans", FORMAT)
    folder = dataset.root / journal.JOURNAL
    folder.mkdir()
    (tmp_path / "precious").write_text("mine")
    (folder / "x").write_text("theirs")
    for marker in (b"{", dump_signed({"moves": [["meta/.journal/x", "../precious"]]}), dump_signed({"moves": [3]})):
        (folder / journal.MARKER).write_bytes(marker)
        with pytest.raises(DatasetError):
            dataset.label(0, "success")
        assert dataset.verify() != []
    assert (tmp_path / "precious").read_text() == "mine"


def test_a_full_disk_changes_nothing(small_disk: Path, make_episode: Callable[..., Episode]) -> None:
    root = small_disk / "sans"
    dataset = Dataset.create(root, FORMAT)
    dataset.append(small(make_episode))
    for free in range(0, 250, 10):  # kB: it gets full at another moment each time
        ballast = small_disk / "ballast"
        space = shutil.disk_usage(small_disk).free - free * 1024
        ballast.write_bytes(bytes(space))
        before = len(dataset)
        try:
            dataset.append(small(make_episode, 1, steps=40))
            added = True
        except DatasetError as error:
            added, sentence = False, str(error)
        assert added or "free some space" in sentence or "make room" in sentence
        assert len(Dataset.open(root)) == before + added
        assert dataset.verify() == []
        ballast.unlink()
        if added:
            return
    raise AssertionError("it never fitted")


def test_a_file_that_cannot_grow_is_one_sentence(tmp_path: Path, make_episode: Callable[..., Episode]) -> None:
    root = tmp_path / "sans"
    Dataset.create(root, FORMAT).append(small(make_episode))

    def work(limit: int) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        with pytest.raises(DatasetError):
            Dataset.open(root).append(small(make_episode, 1, steps=40))

    for limit in (100, 2_000, 5_000, 12_000):
        assert in_child(lambda limit=limit: work(limit)) == 0
        assert Dataset.open(root).verify() == []
        assert len(Dataset.open(root)) == 1
