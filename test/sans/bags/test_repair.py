"""Bags whose recorder was killed at any byte become readable again, with all that had been written."""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rosbags.rosbag2 import CompressionFormat, CompressionMode, Reader, StoragePlugin, Writer

from wvl_ros.cli import main
from wvl_ros.errors import BagError
from wvl_ros.sans.bags.label import label_bag
from wvl_ros.sans.bags.part_folder import unfinished
from wvl_ros.sans.bags.recording import EpisodeRecording
from wvl_ros.sans.bags.repair import find_bags, repair
from wvl_ros.sans.bags.topics import message_types

FIRST = 1_700_000_000_000_000_000
COUNT = 30


def text(number: int) -> bytes:
    """A serialised std_msgs/String."""
    message = message_types().types["std_msgs/msg/String"](data=f"{number:04d}" * 50)
    return bytes(message_types().serialize_cdr(message, "std_msgs/msg/String"))


def foreign_bag(bag: Path, plugin: StoragePlugin, mode: CompressionMode = CompressionMode.NONE) -> Path:
    """What `ros2 bag record` would write of two topics."""
    writer = Writer(bag, version=9, storage_plugin=plugin)
    if mode != CompressionMode.NONE:
        writer.set_compression(mode, CompressionFormat.ZSTD)
    with writer:
        topics = [writer.add_connection(t, "std_msgs/msg/String", typestore=message_types()) for t in ("/a", "/b")]
        for number in range(COUNT):
            writer.write(topics[number % 2], FIRST + number, text(number))
    return bag


def contents(bag: Path) -> list[tuple[str, int, bytes]]:
    with Reader(bag) as reader:
        return [(c.topic, stamp, bytes(data)) for c, stamp, data in reader.messages()]


def expected(count: int = COUNT) -> list[tuple[str, int, bytes]]:
    return [(f"/{'ab'[number % 2]}", FIRST + number, text(number)) for number in range(count)]


def open_recording(out: Path, count: int = COUNT) -> EpisodeRecording:
    """A recording of ours whose process is about to be killed: its lock goes, nothing else happens."""
    from wvl_ros.sans.bags.recording import RecordedTopic, make_qos

    topics = {name: RecordedTopic(name, "std_msgs/msg/String", make_qos(), stamped=False) for name in ("/a", "/b")}
    recording = EpisodeRecording(out, "first", "/real", FIRST, facts={"policy": "small"}, topics=topics)
    for number in range(count):
        recording.write(f"/{'ab'[number % 2]}", FIRST + number, text(number), anyway=True)
        if number == count // 2:
            recording.flush()
    return recording


def test_a_killed_recording_is_a_bag_again_with_what_was_flushed(tmp_path, capsys):
    recording = open_recording(tmp_path)
    assert unfinished(tmp_path) == []  # its writer lives
    with pytest.raises(BagError, match="is being recorded"):
        repair(next(tmp_path.glob(".*.part")))
    recording.label("near_success", "operator")
    recording._part.release()  # what the kernel does when a process is killed; the buffers are lost
    (part,) = unfinished(tmp_path)
    assert main(["bag", "repair", str(tmp_path)]) == 0
    assert "saved 16 messages" in capsys.readouterr().out
    assert not part.exists()
    bag = tmp_path / "first" / "bag"
    assert contents(bag) == expected(COUNT // 2 + 1)
    custom = yaml.safe_load((bag / "metadata.yaml").read_text())["rosbag2_bagfile_information"]["custom_data"]
    assert (custom["outcome"], custom["outcome_source"]) == ("near_success", "operator")
    assert (custom["policy"], custom["namespace"], custom["episode_id"]) == ("small", "/real", "first")
    recording.abandon()


def test_a_recording_without_any_message_is_removed(tmp_path):
    open_recording(tmp_path, 0).abandon()
    assert repair(next(tmp_path.glob(".*.part"))).state == "empty"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", [CompressionMode.NONE, CompressionMode.MESSAGE, CompressionMode.STORAGE])
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 0.999))
def test_a_cut_mcap_keeps_every_whole_message(tmp_path, mode, share):
    bag = tmp_path / "bag"
    shutil.rmtree(bag, ignore_errors=True)
    foreign_bag(bag, StoragePlugin.MCAP, mode)
    (bag / "metadata.yaml").unlink()
    file = bag / "bag.mcap"
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * share)])
    result = repair(bag)
    found = contents(bag)
    assert found == expected(len(found))
    assert result.messages == len(found)
    last = data[: int(len(data) * share)].rfind(text(len(found) - 1)) if found else 0
    if mode == CompressionMode.NONE:
        assert last >= 0
        assert data[: int(len(data) * share)].find(text(len(found))) < 0
    before = hashlib.md5(file.read_bytes()).hexdigest()
    assert repair(bag).state == "whole"
    assert hashlib.md5(file.read_bytes()).hexdigest() == before


@pytest.mark.parametrize("plugin", list(StoragePlugin))
@pytest.mark.parametrize("mode", list(CompressionMode))
@pytest.mark.parametrize("metadata", [None, "", "rosbag2_bagfile_information: 3", "a: [", "\x00\x01"])
def test_a_bag_without_its_metadata_gets_it_back(tmp_path, plugin, mode, metadata):
    if plugin == StoragePlugin.SQLITE3 and mode == CompressionMode.STORAGE:
        return  # sqlite3 has no compression of its own
    bag = foreign_bag(tmp_path / "bag", plugin, mode)
    (bag / "metadata.yaml").unlink()
    if metadata is not None:
        (bag / "metadata.yaml").write_text(metadata)
    assert repair(bag).state == "repaired"
    assert contents(bag) == expected()
    label_bag(bag, "success")


def test_a_whole_bag_is_left_alone_and_its_label_stays(tmp_path):
    bag = foreign_bag(tmp_path / "bag", StoragePlugin.MCAP)
    label_bag(bag, "failure")
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in bag.iterdir()}
    assert (repair(bag).state, repair(bag).outcome) == ("whole", "failure")
    assert {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in bag.iterdir()} == before


def test_an_sqlite_bag_with_a_journal_and_with_damage(tmp_path):
    bag = foreign_bag(tmp_path / "bag", StoragePlugin.SQLITE3)
    (bag / "metadata.yaml").unlink()
    file = bag / "bag.db3"
    with closing(sqlite3.connect(file)) as base:
        base.execute("PRAGMA journal_mode=WAL")
        base.execute("PRAGMA wal_autocheckpoint=0")
        base.execute("INSERT INTO messages(topic_id, timestamp, data) VALUES (1, ?, ?)", (FIRST + COUNT, text(COUNT)))
        base.commit()
        shutil.copytree(bag, tmp_path / "killed")
    assert (tmp_path / "killed" / "bag.db3-wal").stat().st_size
    assert repair(tmp_path / "killed").messages == COUNT + 1
    assert contents(tmp_path / "killed") == expected(COUNT + 1)
    data = bytearray(file.read_bytes())
    assert len(data) > 4 * 4096
    file.write_bytes(data[: len(data) // 4096 * 4096 - 4096])
    result = repair(bag)
    assert 0 < result.messages < COUNT
    assert set(contents(bag)) <= set(expected())


def test_split_files_lose_only_what_the_last_one_lost(tmp_path):
    for number in range(2):
        foreign_bag(tmp_path / f"bag_{number}", StoragePlugin.MCAP)
    bag = tmp_path / "bag"
    bag.mkdir()
    for number in range(2):
        data = (tmp_path / f"bag_{number}" / f"bag_{number}.mcap").read_bytes()
        (bag / f"bag_{number}.mcap").write_bytes(data if number == 0 else data[: len(data) // 2])
    first = (bag / "bag_0.mcap").stat().st_mtime_ns
    result = repair(bag)
    assert COUNT < result.messages < 2 * COUNT
    assert (bag / "bag_0.mcap").stat().st_mtime_ns == first


def test_a_bare_file_among_others_gets_a_bag_of_its_own(tmp_path):
    for name in ("one", "two"):
        foreign_bag(tmp_path / "made", StoragePlugin.MCAP)
        shutil.move(tmp_path / "made" / "made.mcap", tmp_path / f"{name}.mcap")
        shutil.rmtree(tmp_path / "made")
    assert repair(tmp_path / "one.mcap").path == tmp_path / "one"
    assert contents(tmp_path / "one") == expected()
    assert (tmp_path / "one.mcap").exists()
    with pytest.raises(BagError, match="is there already"):
        repair(tmp_path / "one.mcap")


@pytest.mark.parametrize("data", [b"", b"hello" * 100, b"\x89MCAP0\r\n" + b"\xff" * 100])
def test_what_holds_nothing_is_named(tmp_path, capsys, data):
    with pytest.raises(BagError, match="neither a bag nor recordings"):
        find_bags(tmp_path)
    (tmp_path / "x.db3").write_bytes(data)
    assert main(["bag", "repair", str(tmp_path / "x.db3")]) == 2
    assert "x.db3" in capsys.readouterr().err
