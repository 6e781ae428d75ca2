"""Bags without ROS: written from serialised messages in any order, read back as the same episode."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from wvl_ros.errors import EpisodeError
from wvl_ros.sans.bags.reader import read_bag
from wvl_ros.sans.bags.recording import EpisodeRecording, message_stamp
from wvl_ros.sans.bags.topics import FINISHED, RUNNING, TOPICS, message_types
from wvl_ros.sans.render import find_reference
from wvl_ros.sans.sources import load_source
from wvl_ros.worlds.droid import CAMERAS, FINGER_NAMES, FINGER_TRAVEL, JOINT_NAMES
from wvl_ros.worlds.quaternion import euler_to_quaternion

PERIOD = 66_666_666
FIRST = 1_700_000_000_000_000_000
STEPS = 4


def make(kind: str, **fields):
    return message_types().types[kind](**fields)


def header(stamp: int):
    time = make("builtin_interfaces/msg/Time", sec=stamp // 10**9, nanosec=stamp % 10**9)
    return make("std_msgs/msg/Header", stamp=time, frame_id="base")


def messages(episode_id: str, first: int, namespace: str = "/real") -> list[tuple[str, int, bytes]]:
    """All of an episode of `STEPS` observations, serialised; pictures and joints hold the step's number."""
    rows = []

    def add(name: str, stamp: int, message) -> None:
        data = bytes(message_types().serialize_cdr(message, TOPICS[name]))
        rows.append((f"{namespace}/{name}", stamp, data))

    for step in range(STEPS):
        stamp = first + step * PERIOD
        for camera in CAMERAS:
            pixels = np.full(2 * 4 * 3, step, np.uint8)
            picture = {"height": 2, "width": 4, "encoding": "rgb8", "is_bigendian": 0, "step": 12, "data": pixels}
            add(f"{camera}/image_raw", stamp, make("sensor_msgs/msg/Image", header=header(stamp), **picture))
        fingers = [FINGER_TRAVEL * (1 - step / 10)] * 2
        joints = {"position": np.array([step / 8] * 7 + fingers), "velocity": np.empty(0), "effort": np.empty(0)}
        names = [*JOINT_NAMES, *FINGER_NAMES]
        add("joint_states", stamp, make("sensor_msgs/msg/JointState", header=header(stamp), name=names, **joints))
        point = make("geometry_msgs/msg/Point", x=0.5, y=0.0, z=step / 100)
        turn = make(
            "geometry_msgs/msg/Quaternion", **dict(zip("xyzw", euler_to_quaternion([3.0, 0.1, -0.2]), strict=True))
        )
        pose = make("geometry_msgs/msg/Pose", position=point, orientation=turn)
        add("cartesian_position", stamp, make("geometry_msgs/msg/PoseStamped", header=header(stamp), pose=pose))
        facts = {
            "reward": float(step == STEPS - 1),
            "success_probability": 0.5,
            "commanded_pose": np.full(7, step / 100),
        }
        add(
            "reward", stamp, make("wvl_ros/msg/Reward", header=header(stamp), episode_id=episode_id, step=step, **facts)
        )
        over = step == STEPS - 1
        texts = {"world": "tabletop", "task": "push", "instruction": "go", "source": "droid@3", "message": ""}
        facts = {
            "state": FINISHED if over else RUNNING,
            "outcome": "success" if over else "",
            "max_steps": 9,
            "seed": 7,
        }
        about = {"header": header(stamp), "episode_id": episode_id, "step": step}
        status = make("wvl_ros/msg/EpisodeStatus", **about, **texts, **facts)
        add("episode_status", stamp, status)
    return rows


def record(out: Path, rows: list[tuple[str, int, bytes]], **settings) -> EpisodeRecording:
    recording = EpisodeRecording(out, "first", "/real", FIRST, **settings)
    for topic, stamp, data in rows:
        assert message_stamp(data) == stamp
        recording.write(topic, stamp, data)
    return recording


def test_an_episode_survives_any_order_and_neighbours(tmp_path):
    # DDS keeps the order within a topic, and none between topics.
    topics = sorted(f"/real/{name}" for name in TOPICS)
    random.Random(3).shuffle(topics)
    rows = sorted(messages("first", FIRST) + messages("before", FIRST - 9 * PERIOD), key=lambda row: row[1])
    recording = record(tmp_path, sorted(rows, key=lambda row: topics.index(row[0])))
    assert [path.name[0] for path in tmp_path.iterdir()] == ["."]  # hidden until it is whole
    assert not recording.complete
    recording.end(FIRST + (STEPS - 1) * PERIOD, STEPS - 1, "success")
    report = recording.close()
    assert (report.folder, report.outcome, report.missing) == (tmp_path / "first", "success", 0)
    episode = load_source(str(report.folder))
    assert (len(episode), episode.outcome, episode.task, episode.instruction) == (STEPS, "success", "push", "go")
    for camera in CAMERAS:
        assert episode.images[camera][:, 0, 0, 0].tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(episode.joint_position[:, 0], np.arange(STEPS) / 8)
    np.testing.assert_allclose(episode.gripper_position[:, 0], np.arange(STEPS) / 10)
    np.testing.assert_allclose(episode.cartesian_position[2], [0.5, 0.0, 0.02, 3.0, 0.1, -0.2])
    np.testing.assert_allclose(episode.action[:, 0], [0.01, 0.02, 0.03])
    assert episode.reward.tolist() == [0, 0, 1]
    reference = find_reference(report.bag, episode)
    assert reference is not None
    assert (reference.start, len(reference.episode)) == (3, 167)


def test_missing_images_are_counted_and_the_last_one_stands_in(tmp_path):
    lost = ("/real/wrist_image_left/image_raw", FIRST + 2 * PERIOD)
    recording = record(tmp_path, [row for row in messages("first", FIRST) if row[:2] != lost])
    recording.end(FIRST + (STEPS - 1) * PERIOD, STEPS - 1, "success")
    report = recording.close()
    assert report.missing == 1
    assert read_bag(report.bag).images["wrist_image_left"][:, 0, 0, 0].tolist() == [0, 1, 1, 3]


def test_an_episode_that_never_ended_is_aborted_and_readable(tmp_path):
    report = record(tmp_path, [row for row in messages("first", FIRST) if row[1] < FIRST + 2 * PERIOD]).close()
    assert report.outcome == "aborted"
    assert (len(read_bag(report.bag)), read_bag(report.bag).outcome) == (2, "aborted")


def test_a_second_world_in_the_bag_is_the_reference(tmp_path):
    rows = messages("first", FIRST) + messages("other", FIRST, "/imagined")
    report = record(tmp_path, rows, reference="/imagined").close()
    episode = read_bag(report.bag)
    assert episode.episode_id == "first"
    assert find_reference(report.bag, episode).episode.episode_id == "other"
    with pytest.raises(EpisodeError, match="no episode 'third', but first"):
        read_bag(report.bag, episode_id="third")


def test_what_is_no_bag_or_lacks_a_topic_is_refused_with_a_sentence(tmp_path):
    with pytest.raises(EpisodeError, match=r"not a bag: it has no metadata\.yaml"):
        read_bag(tmp_path)
    rows = [row for row in messages("first", FIRST) if not row[0].endswith("joint_states")]
    bag = record(tmp_path, rows).close().bag
    with pytest.raises(EpisodeError, match=r"no messages on '/real/joint_states' \(joint states\)"):
        read_bag(bag)
    data = next(bag.glob("*.mcap"))
    data.write_bytes(data.read_bytes()[:200])
    with pytest.raises(EpisodeError, match="cannot be read"):
        read_bag(bag)
