"""The recorder's thread with messages in every unusual order: what is in which bag, and what it says."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from rosbags.rosbag2 import Reader

from wvl_ros.errors import WvlError
from wvl_ros.nodes.recording import EpisodeRecorder, RecorderSettings
from wvl_ros.sans.bags.recording import RecordedTopic, RecordingReport, known_topics, make_qos
from wvl_ros.sans.bags.repair import repair
from wvl_ros.sans.bags.topics import ABORTED, FINISHED, RUNNING, message_types

SECOND = 1_000_000_000
FIRST = 1_700_000_000 * SECOND
NOTE = "/real/note"


class Desk:
    """Keeps what the recorder says."""

    def __init__(self) -> None:
        self.reports: list[RecordingReport] = []
        self.complaints: list[str] = []
        self.said: list[str] = []
        self.relabelled: list[RecordingReport] = []

    def began(self, episode_id: str) -> None:
        self.said.append(f"began {episode_id}")

    def closed(self, report: RecordingReport, complaint: str) -> None:
        self.reports.append(report)
        self.complaints.append(complaint)

    def labelled(self, report: RecordingReport) -> None:
        self.relabelled.append(report)

    def broke_off(self, episode_id: str, sentence: str) -> None:
        self.said.append(f"broke off {episode_id}")

    def stop_episode(self, sentence: str) -> None:
        self.said.append(sentence)

    def warn(self, sentence: str) -> None:
        self.said.append(sentence)

    def failed(self, error: Exception) -> None:
        raise error


class World:
    """Sends what a world would, to a recorder without ROS."""

    def __init__(self, out: Path, **settings: int) -> None:
        self.desk = Desk()
        topics = known_topics("/real") | {
            NOTE: RecordedTopic(NOTE, "std_msgs/msg/String", make_qos(), stamped=False),
            "/real/model": RecordedTopic("/real/model", "std_msgs/msg/String", make_qos(latched=True), False, True),
        }
        facts = {"policy": "small", "iteration": "3"}
        self.recorder = EpisodeRecorder(RecorderSettings(out, "/real", facts=facts, **settings), topics, self.desk)
        self.recorder.start()
        self.recorder.publishing({"/real/reward", "/real/episode_status"})

    def send(self, topic: str, kind: str, **fields: object) -> None:
        message = message_types().types[kind](**fields)
        self.recorder.put(topic, bytes(message_types().serialize_cdr(message, kind)))

    def header(self, stamp: int) -> object:
        make = message_types().types
        moment = make["builtin_interfaces/msg/Time"](sec=stamp // SECOND, nanosec=stamp % SECOND)
        return make["std_msgs/msg/Header"](stamp=moment, frame_id="")

    def reward(self, episode_id: str, step: int, stamp: int) -> None:
        facts = {"reward": 0.0, "success_probability": 0.0, "commanded_pose": np.zeros(7)}
        self.send(
            "/real/reward", "wvl_ros/msg/Reward", header=self.header(stamp), episode_id=episode_id, step=step, **facts
        )

    def status(
        self, episode_id: str, step: int, stamp: int, state: int = RUNNING, outcome: str = "", **more: str
    ) -> None:
        texts = {"world": "", "task": "", "instruction": "", "source": "", "message": ""} | more
        numbers = {"state": state, "step": step, "max_steps": 9, "seed": 0}
        about = {"header": self.header(stamp), "episode_id": episode_id, "outcome": outcome}
        self.send("/real/episode_status", "wvl_ros/msg/EpisodeStatus", **about, **texts, **numbers)

    def episode(self, episode_id: str, first: int, steps: int = 3, outcome: str = "success") -> None:
        for step in range(steps):
            stamp = first + step * SECOND // 15
            self.reward(episode_id, step, stamp)
            self.status(episode_id, step, stamp)
        self.status(episode_id, steps - 1, stamp, FINISHED, outcome)

    def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < deadline, self.desk.said
            time.sleep(0.01)

    def closed(self, count: int) -> list[RecordingReport]:
        self.until(lambda: len(self.desk.reports) >= count)
        return self.desk.reports


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    one = World(tmp_path)
    yield one
    one.recorder.close(5.0)


def steps(bag: Path) -> list[tuple[str, int]]:
    with Reader(bag) as reader:
        connections = [c for c in reader.connections if c.topic == "/real/reward"]
        rewards = [message_types().deserialize_cdr(raw, c.msgtype) for c, _, raw in reader.messages(connections)]
    return [(reward.episode_id, reward.step) for reward in rewards]  # type: ignore[attr-defined]


def custom(bag: Path) -> dict[str, str]:
    return dict(yaml.safe_load((bag / "metadata.yaml").read_text())["rosbag2_bagfile_information"]["custom_data"])


def test_a_clock_that_jumps_back_between_episodes_mixes_nothing(world):
    world.episode("late", FIRST + 5000 * SECOND)
    world.closed(1)
    world.status("late", 2, FIRST + 5010 * SECOND, FINISHED, "success")  # kept: it could belong to the next episode
    world.episode("early", FIRST)
    reports = world.closed(2)
    assert steps(reports[0].bag) == [("late", step) for step in range(3)]
    assert steps(reports[1].bag) == [("early", step) for step in range(3)]
    with Reader(reports[1].bag) as reader:
        assert reader.end_time < FIRST + 10 * SECOND
    assert any("jumped back" in sentence for sentence in world.desk.said)


def test_an_episode_that_begins_again_gets_a_second_bag(world, tmp_path):
    world.reward("same", 0, FIRST)
    world.reward("same", 0, FIRST)  # published again for a late subscriber
    world.reward("same", 1, FIRST + 1)
    world.episode("same", FIRST + SECOND)
    world.closed(2)
    world.episode("same", FIRST + 9 * SECOND)
    reports = world.closed(3)
    assert [report.folder.name for report in reports] == ["same", "same-2", "same-3"]
    assert [report.outcome for report in reports] == ["aborted", "success", "success"]
    assert steps(reports[0].bag) == [("same", 0), ("same", 1)]
    assert "began again" in custom(reports[0].bag)["reason"]
    assert list(tmp_path.glob(".*")) == []


def test_two_worlds_in_one_namespace_are_noticed_and_make_no_success(world):
    for step in range(30):
        for name in "ab":
            world.reward(name, step, FIRST + step * SECOND)
    reports = world.closed(2)
    assert [report.outcome for report in reports] == ["aborted", "aborted"]
    assert "two worlds publish in '/real'" in reports[1].reason
    assert any("Two worlds publish in '/real'" in sentence for sentence in world.desk.said)
    world.episode("c", FIRST + 100 * SECOND)
    assert world.closed(3)[2].outcome == "success"
    assert len(world.desk.reports) == 3


def test_messages_without_stamp_and_latched_ones_are_there(world):
    world.send("/real/model", "std_msgs/msg/String", data="robot")
    world.send(NOTE, "std_msgs/msg/String", data="before")
    time.sleep(0.3)
    for number in range(2):
        world.reward(str(number), 0, FIRST + number * SECOND)
        world.until(lambda number=number: f"began {number}" in world.desk.said)
        world.send(NOTE, "std_msgs/msg/String", data="during")
        world.status(str(number), 0, FIRST + number * SECOND, FINISHED, "failure")
    for number, report in enumerate(world.closed(2)):
        with Reader(report.bag) as reader:
            rows = {c.topic: (stamp, bytes(raw)) for c, stamp, raw in reader.messages()}
            counts = {c.topic: c.msgcount for c in reader.connections}
        assert rows["/real/model"][0] == FIRST + number * SECOND
        assert b"robot" in rows["/real/model"][1]
        assert b"during" in rows[NOTE][1]
        assert abs(rows[NOTE][0] - time.time_ns()) < 60 * SECOND
        assert counts == {"/real/reward": 1, "/real/episode_status": 1, NOTE: 1, "/real/model": 1}


def test_labels_during_and_after_an_episode(world):
    with pytest.raises(WvlError, match="No episode has been recorded"):
        world.recorder.label("", "success", "").result(5)
    world.reward("a", 0, FIRST)
    assert "will be 'near_success'" in world.recorder.label("", "near_success", "").result(5)
    world.status("a", 0, FIRST, ABORTED, "aborted", message="cancelled")
    (report,) = world.closed(1)
    assert (report.outcome, report.outcome_source) == ("near_success", "operator")
    expected = {"outcome": "near_success", "outcome_source": "operator", "reason": "cancelled", "iteration": "3"}
    assert custom(report.bag).items() >= expected.items()
    world.recorder.label("a", "failure", "reward_model").result(5)
    assert (custom(report.bag)["outcome"], custom(report.bag)["outcome_source"]) == ("failure", "reward_model")
    assert world.desk.relabelled[0].outcome == "failure"
    for episode_id, outcome, sentence in [("a", "great", "no outcome called 'great'"), ("b", "failure", "no recording"),
                                          ("../a", "failure", "no recording")]:  # fmt: skip
        with pytest.raises(WvlError, match=sentence):
            world.recorder.label(episode_id, outcome, "").result(5)
    with pytest.raises(WvlError, match="no source"):
        world.recorder.label("a", "failure", "me").result(5)


def test_within_a_second_the_bag_can_be_repaired_to_the_last_message(world, tmp_path):
    for step in range(5):
        world.reward("a", step, FIRST + step)
    world.until(lambda: "began a" in world.desk.said)
    time.sleep(1.0)
    copy = tmp_path / "copy"
    shutil.copytree(next(tmp_path.glob(".a.*.part")), copy / ".a.1.part")  # as a kill would leave it
    result = repair(copy / ".a.1.part")
    assert steps(result.path) == [("a", step) for step in range(5)]
    assert (result.outcome, custom(result.path)["policy"]) == ("aborted", "small")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    try:
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("only root may mount a small disk")
    except FileNotFoundError:
        pytest.skip("no mount here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_nearly_full_disk_stops_the_episode_and_refuses_the_next(small_disk):
    world = World(small_disk, min_free=6_000_000)
    world.reward("a", 0, FIRST)
    world.until(lambda: "began a" in world.desk.said)
    (small_disk / "other").write_bytes(bytes(4_000_000))
    world.until(lambda: any("Episode a is stopped: the disk is nearly full" in said for said in world.desk.said))
    (report,) = world.closed(1)  # although this world does not listen
    assert (report.outcome, steps(report.bag)) == ("aborted", [("a", 0)])
    assert "nearly full" in custom(report.bag)["reason"]
    world.episode("b", FIRST + SECOND)
    world.until(lambda: any("Episode b is not recorded: the disk is nearly full" in said for said in world.desk.said))
    (small_disk / "other").unlink()
    world.episode("c", FIRST + 9 * SECOND)
    assert world.closed(2)[1].outcome == "success"
    world.recorder.close(5.0)


def test_a_full_disk_keeps_what_was_flushed_and_the_recorder_lives_on(small_disk):
    world = World(small_disk)
    world.reward("a", 0, FIRST)
    world.until(lambda: "began a" in world.desk.said)
    world.send(NOTE, "std_msgs/msg/String", data="x" * 1_000_000)
    time.sleep(1.0)
    (small_disk / "other").write_bytes(bytes(shutil.disk_usage(small_disk).free - 100_000))
    for _ in range(20):
        world.send(NOTE, "std_msgs/msg/String", data="x" * 1_000_000)
    world.until(lambda: "broke off a" in world.desk.said)
    assert any("wvl bag repair" in said and "No space left" in said for said in world.desk.said)
    time.sleep(0.3)  # the last of these are not of the next episode
    (small_disk / "other").unlink()
    (part,) = small_disk.glob(".a.*.part")
    result = repair(part)
    assert (steps(result.path), result.outcome) == ([("a", 0)], "aborted")
    world.episode("b", FIRST + SECOND)
    assert world.closed(1)[0].outcome == "success"
    world.recorder.close(5.0)
