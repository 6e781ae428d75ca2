"""The recorder as a process: topics it did not know, labels by service and by key, a kill, a full disk."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
import yaml
from rosbags.rosbag2 import Reader

rclpy = pytest.importorskip("rclpy")

from geometry_msgs.msg import WrenchStamped  # noqa: E402
from rclpy.qos import QoSProfile, qos_profile_sensor_data  # noqa: E402
from sensor_msgs.msg import CompressedImage  # noqa: E402
from std_msgs.msg import String  # noqa: E402

from wvl_ros.cli import main  # noqa: E402
from wvl_ros.msg import EpisodeStatus, RecordedEpisode, Reward  # noqa: E402
from wvl_ros.nodes import qos  # noqa: E402
from wvl_ros.nodes.messages import to_time  # noqa: E402
from wvl_ros.sans.bags.topics import FINISHED, IDLE, RUNNING  # noqa: E402
from wvl_ros.srv import LabelEpisode  # noqa: E402

LISTENED = {"wait_for": "['action_chunk', 'recorded_episode']"}


def custom(bag: Path) -> dict[str, str]:
    return dict(yaml.safe_load((bag / "metadata.yaml").read_text())["rosbag2_bagfile_information"]["custom_data"])


class Lab:
    """A lab's own world: a camera that comes only compressed, by a best-effort driver, and a sensor of its own."""

    def __init__(self) -> None:
        self.node = node = rclpy.create_node("lab", namespace="/real")
        self.recorded: list[RecordedEpisode] = []
        self.camera = node.create_publisher(
            CompressedImage, "wrist_image_left/image_raw/compressed", qos_profile_sensor_data
        )
        self.force = node.create_publisher(WrenchStamped, "force", QoSProfile(depth=10))
        self.note = node.create_publisher(String, "note", QoSProfile(depth=10))
        self.reward = node.create_publisher(Reward, "reward", qos_profile_sensor_data)
        self.statuses = node.create_publisher(EpisodeStatus, "episode_status", qos.STATUS)
        self.statuses.publish(EpisodeStatus(state=IDLE))
        node.create_subscription(RecordedEpisode, "recorded_episode", self.recorded.append, qos.STATUS)
        self.labels = node.create_client(LabelEpisode, "label_episode")

    def until(self, condition):
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline
            rclpy.spin_once(self.node, timeout_sec=0.05)

    def step(self, number: int, state: int = RUNNING) -> None:
        stamp = to_time(time.time_ns())
        for publisher, message in (
            (self.camera, CompressedImage(format="jpeg")),
            (self.force, WrenchStamped()),
            (self.reward, Reward(episode_id="one", step=number)),
            (self.statuses, EpisodeStatus(episode_id="one", step=number, state=state)),
        ):
            message.header.stamp = stamp
            if isinstance(message, EpisodeStatus) and state == FINISHED:
                message.outcome = "failure"
            publisher.publish(message)
        self.note.publish(String(data="hello"))

    def label(self, **fields) -> LabelEpisode.Response:
        future = self.labels.call_async(LabelEpisode.Request(**fields))
        self.until(future.done)
        return future.result()


@pytest.fixture
def lab(environment, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    rclpy.init()
    yield (one := Lab())
    one.node.destroy_node()
    rclpy.shutdown()


def test_topics_of_a_lab_of_its_own_are_recorded_and_labelled(lab, start, tmp_path):
    recorder = start("recorder", out=tmp_path / "out", render=False, iteration=2)
    recorder.wait_for("/real/note (std_msgs/msg/String), too")
    recorder.wait_for("/real/force")
    publishers = (lab.camera, lab.force, lab.note, lab.reward, lab.statuses)
    lab.until(lambda: all(publisher.get_subscription_count() for publisher in publishers))
    time.sleep(0.5)
    for number in range(6):
        lab.step(number, FINISHED if number == 5 else RUNNING)
        time.sleep(0.05)
    lab.until(lambda: lab.recorded)
    first = lab.recorded[0]
    assert (first.outcome, first.outcome_source, first.missing) == ("failure", "world", 0)
    with Reader(Path(first.bag)) as reader:
        counts = {c.topic: c.msgcount for c in reader.connections}
        types = {c.topic: c.msgtype for c in reader.connections}
    assert counts["/real/wrist_image_left/image_raw/compressed"] == 6
    assert (counts["/real/force"], counts["/real/reward"], types["/real/note"]) == (6, 6, "std_msgs/msg/String")
    assert counts["/real/note"] >= 5  # without a stamp, the last may come after the end
    answer = lab.label(outcome="near_success")
    assert answer.success, answer.message
    lab.until(lambda: len(lab.recorded) == 2)
    assert (lab.recorded[1].outcome, lab.recorded[1].outcome_source) == ("near_success", "operator")
    assert custom(Path(first.bag)).items() >= {"outcome": "near_success", "iteration": "2"}.items()
    answer = lab.label(outcome="splendid")
    assert not answer.success
    assert "choose one of: aborted, failure, near_success, success" in answer.message
    assert recorder.end() == 0


def test_a_killed_recorder_leaves_a_bag_that_repair_mends(lab, start, tmp_path, capsys):
    out = tmp_path / "out"
    recorder = start("recorder", out=out, render=False)
    recorder.wait_for("/real/force")
    lab.until(lambda: lab.reward.get_subscription_count() and lab.node.count_publishers("recorded_episode"))
    for number in range(40):
        lab.step(number)
        time.sleep(0.05)
    recorder.process.send_signal(signal.SIGKILL)
    recorder.wait()
    again = start("recorder", out=out, render=False)
    again.wait_for("`wvl bag repair")
    assert main(["bag", "repair", str(out)]) == 0
    assert "aborted" in capsys.readouterr().out
    with Reader(out / "one" / "bag") as reader:
        counts = {c.topic: c.msgcount for c in reader.connections}
    assert counts["/real/reward"] > 40 - 22  # a second is 20


def test_a_nearly_full_disk_stops_the_episode_of_a_real_world(start, recorded, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk)], check=False).returncode:
        pytest.skip("only root may mount a small disk")
    try:
        world = recorded(realtime=True)
        start("policy", policy="hold")
        recorder = start("recorder", out=disk, render=False, min_free_mb=40)
        runner = start("runner", **LISTENED)
        runner.wait_for("episode 1/1  step 1")
        (disk / "other").write_bytes(bytes(30_000_000))
        assert runner.wait() == 1
        recorder.wait_for("is stopped: the disk is nearly full")
        assert "abort_episode was called" in world.output
        (folder,) = (path for path in disk.iterdir() if path.is_dir())
        assert "nearly full" in custom(folder / "bag")["reason"]
        assert start("runner", **LISTENED).wait() == 1
        recorder.wait_for("is not recorded: the disk is nearly full")
        assert recorder.end() == 0
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_key_ends_the_episode_with_its_outcome_and_the_terminal_is_put_back(start, recorded, environment, tmp_path):
    out = tmp_path / "out"
    recorded(realtime=True)
    start("policy", policy="hold")
    start("recorder", out=out, render=False)
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    words = ["--ros-args", "-r", "__ns:=/real", "-p", f"wait_for:={LISTENED['wait_for']}"]
    command = [sys.executable, "-m", "wvl_ros.nodes.runner", *words]
    log = tmp_path / "runner.txt"
    with log.open("w") as file:
        runner = subprocess.Popen(command, stdin=slave, stdout=file, stderr=file, env=environment)
    try:
        deadline = time.monotonic() + 60
        while "[s]uccess [n]ear [f]ailure" not in log.read_text() or "step 1" not in log.read_text():
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        assert not termios.tcgetattr(slave)[3] & termios.ICANON
        os.write(master, b"xn")
        assert runner.wait(60) == 0, log.read_text()
        assert termios.tcgetattr(slave) == before
    finally:
        runner.kill()
        runner.wait()
        os.close(master)
        os.close(slave)
    (folder,) = out.iterdir()
    assert custom(folder / "bag").items() >= {"outcome": "near_success", "outcome_source": "operator"}.items()
    assert "near_success" in log.read_text()
