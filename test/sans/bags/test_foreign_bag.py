"""Bags of a lab's own recorder: aligned to 15 Hz, or refused with a sentence."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from rosbags.rosbag2 import CompressionMode, StoragePlugin

from wvl_ros.errors import BagError
from wvl_ros.sans.bags.bag_episode import AlignmentOptions
from wvl_ros.sans.bags.reader import bag_episodes
from wvl_ros.sans.bags.streams import Bag
from wvl_ros.worlds.droid import CAMERAS, JOINT_NAMES, RESET_JOINTS, forward_kinematics

JOINTS, FINGERS = "/franka/joint_states", "/franka_gripper/joint_states"
WRIST = "/camera3/camera3/color/image_raw"
FORMATS = [
    *((StoragePlugin.MCAP, mode) for mode in CompressionMode),
    *((StoragePlugin.SQLITE3, mode) for mode in CompressionMode if mode is not CompressionMode.STORAGE),
]


def load(path: Path, **options):
    """All episodes of a bag and their reports."""
    with Bag(path) as bag:
        found = [read() for _, read in bag_episodes(bag, options=AlignmentOptions(**options))]
        return [(row.load(), row.report) for row in found]


@pytest.mark.parametrize(("storage", "compression"), FORMATS)
def test_every_storage_and_compression_gives_the_same_episode(tmp_path, robot_bag, storage, compression):
    path = robot_bag.usual(1.0).write(tmp_path / "bag", storage=storage, compression=compression)
    ((episode, report),) = load(path)
    assert len(episode) == 15
    # The grid begins with the last stream to begin, camera 3 at 3 ms; pictures come at 30 Hz, so every other is taken.
    assert episode.images[CAMERAS[2]][:, 0, 0, 0].tolist() == list(range(0, 29, 2))
    steps = 0.003 + np.arange(15) / 15
    np.testing.assert_allclose(
        episode.joint_position[:, 0], RESET_JOINTS[0] + 0.1 * np.floor(steps * 100) / 100, atol=1e-9
    )
    np.testing.assert_allclose(episode.cartesian_position[4], forward_kinematics(episode.joint_position[4]))
    np.testing.assert_allclose(episode.action[:-1, :6], episode.cartesian_position[1:-1])
    np.testing.assert_allclose(episode.gripper_position[[0, -1], 0], [0.0, 0.75])
    assert episode.action[[0, -1], 6].tolist() == [0.0, 1.0]
    assert (episode.outcome, episode.outcome_source) == ("", "")
    assert report["actions"] == "next measured poses; gripper closed when measured beyond 0.1"
    assert report["streams"][CAMERAS[0]]["clock_offset_ms"] == 3.0
    assert report["skew_max_ms"] < 10.0
    assert report["drops"] == 0


def test_commands_become_the_actions(tmp_path, robot_bag, ros):
    bag = robot_bag.usual(1.0)
    desired = "/franka_robot_state_broadcaster/desired_joint_states"
    rows = [(t, q) for t, q in ((i * 20_000_000, RESET_JOINTS + 0.01 * i) for i in range(10, 50))]
    bag.rows[desired] = [(t, lambda s, q=q: ros["joints"](s, list(JOINT_NAMES), q)) for t, q in rows]
    ((episode, report),) = load(bag.write(tmp_path / "bag"))
    assert report["actions"].startswith(f"commands on {desired}")
    # Step 10 is at 3 + 667 ms; the command in force then is that of 660 ms, and led from step 9 to step 10.
    np.testing.assert_allclose(episode.action[9, :6], forward_kinematics(RESET_JOINTS + 0.33))
    np.testing.assert_allclose(episode.commanded_start[:6], episode.cartesian_position[0])  # no command so far


def test_compressed_and_other_encodings_are_the_same_pictures(tmp_path, robot_bag, ros):
    bag = robot_bag.usual(0.5)
    png = io.BytesIO()
    Image.fromarray(np.full((16, 24, 3), (10, 20, 30), np.uint8)).save(png, "PNG")

    def compressed(stamp):
        data = np.frombuffer(png.getvalue(), np.uint8)
        return ros["make"]("sensor_msgs/msg/CompressedImage", header=ros["header"](stamp), format="png", data=data)

    rows = bag.rows.pop(WRIST)
    bag.rows[f"{WRIST}/compressed"] = [(t, compressed) for t, _ in rows]
    first = "/camera1/camera1/color/image_raw"
    bag.rows[first] = [(t, lambda s: ros["image"](s, 128, encoding="yuv422_yuy2")) for t, _ in bag.rows[first]]
    ((episode, _),) = load(bag.write(tmp_path / "bag"), size=(32, 48))
    assert episode.images[CAMERAS[2]].shape[1:] == (32, 48, 3)
    assert episode.images[CAMERAS[2]][0, 0, 0].tolist() == [10, 20, 30]
    assert np.ptp(episode.images[CAMERAS[0]][0, 0, 0].astype(int)) == 0  # grey
    assert episode.images[CAMERAS[0]][0, 0, 0, 0] == round((128 - 16) * 255 / 219)


def test_header_stamps_of_another_clock_give_way_to_the_bags(tmp_path, robot_bag, ros):
    bag = robot_bag.usual(1.0)
    bag.rows[WRIST] = [(t, lambda s, i=i: ros["image"](s - 10**12, i)) for i, (t, _) in enumerate(bag.rows[WRIST])]
    ((episode, report),) = load(bag.write(tmp_path / "bag"))
    assert report["clock"] == "recording"
    assert episode.images[CAMERAS[2]][:, 0, 0, 0].tolist() == list(range(0, 29, 2))


def test_holes_are_refused_with_where_or_held_and_reported(tmp_path, robot_bag):
    bag = robot_bag.usual(2.0)
    del bag.rows[WRIST][20:24]
    path = bag.write(tmp_path / "bag")
    with pytest.raises(
        BagError, match=r"wrist_image_left' has no image within 33 ms of step 1\d \(0\.\d+ s into .*--allow"
    ):
        load(path)
    ((episode, report),) = load(path, allow_holes=True)
    assert report["streams"][CAMERAS[2]]["drops"] == 4
    assert report["held"] == report["streams"][CAMERAS[2]]["held"] > 0
    assert 19 in episode.images[CAMERAS[2]][:, 0, 0, 0]
    bag = robot_bag.usual(2.0)
    bag.rows[JOINTS] = [row for row in bag.rows[JOINTS] if not 0.5e9 < row[0] < 0.9e9]
    with pytest.raises(BagError, match=r"joint_states' is silent for more than 0.2 s at step 1\d"):
        load(bag.write(tmp_path / "silent"))


def test_a_pause_or_a_clock_set_back_ends_an_episode_when_told(tmp_path, robot_bag):
    bag, later = robot_bag.usual(1.0), robot_bag.usual(1.0)
    for topic, rows in later.rows.items():
        bag.rows[topic] += [(t + 10 * 10**9, build) for t, build in rows]
    path = bag.write(tmp_path / "pause")
    with pytest.raises(BagError, match="has no image within"):
        load(path)
    assert [len(episode) for episode, _ in load(path, split_gap=2.0)] == [15, 15]
    bag = robot_bag.usual(1.0)
    for topic, rows in later.rows.items():  # recorded later, stamped as before
        bag.rows[topic] += [(t + 10 * 10**9, lambda s, b=build: b(s - 10 * 10**9 - 10**8)) for t, build in rows]
    path = bag.write(tmp_path / "back")
    with pytest.raises(BagError, match=r"jumps back by 1\.\d+ s after .*--split-gap"):
        load(path)
    assert [len(episode) for episode, _ in load(path, split_gap=2.0)] == [15, 15]


@pytest.mark.parametrize("plugin", [StoragePlugin.MCAP, StoragePlugin.SQLITE3])
def test_a_bag_split_into_files_is_one_episode(tmp_path, robot_bag, plugin):
    ((expected, _),) = load(robot_bag.usual(2.0).write(tmp_path / "whole"))
    bag = tmp_path / "bag"
    bag.mkdir()
    notes = []
    for number, (first, last) in enumerate(((0, 10**9), (10**9, 10**10))):
        part = robot_bag.usual(2.0)
        part.rows = {topic: [row for row in rows if first <= row[0] < last] for topic, rows in part.rows.items()}
        folder = part.write(tmp_path / f"bag_{number}", storage=plugin)
        notes.append(yaml.safe_load((folder / "metadata.yaml").read_text())["rosbag2_bagfile_information"])
        (folder / notes[-1]["relative_file_paths"][0]).rename(bag / notes[-1]["relative_file_paths"][0])
    for key in ("relative_file_paths", "files"):  # as `ros2 bag record --max-bag-duration` writes them
        notes[0][key] += notes[1][key]
    notes[0]["message_count"] += notes[1]["message_count"]
    (bag / "metadata.yaml").write_text(yaml.safe_dump({"rosbag2_bagfile_information": notes[0]}))
    ((episode, _),) = load(bag)
    assert np.array_equal(episode.joint_position, expected.joint_position)
    assert np.array_equal(episode.images[CAMERAS[0]], expected.images[CAMERAS[0]])


def test_joints_go_by_their_names(tmp_path, robot_bag, ros):
    bag = robot_bag.usual(0.5)
    for wrong, sentence in {
        ("a", "b", "c"): r"lacks the joints fr3_joint1, .*; it has: a, b, c\. Write the arm's joint_names",
        (): "it has: no names",
    }.items():
        values = np.zeros(max(len(wrong), 9))
        bag.rows[JOINTS] = [(t, lambda s, w=wrong, v=values: ros["joints"](s, list(w), v)) for t, _ in bag.rows[JOINTS]]
        with pytest.raises(BagError, match=sentence):
            load(bag.write(tmp_path / f"bag{len(wrong)}"))


def test_two_nodes_may_share_a_topic(tmp_path, robot_bag):
    bag = robot_bag.usual(1.0)
    bag.rows["/joint_states"] = [*bag.rows.pop(JOINTS), *((t + 2_000_000, b) for t, b in bag.rows.pop(FINGERS))]
    ((episode, _),) = load(bag.write(tmp_path / "bag"))
    assert episode.gripper_position[-1, 0] == 0.75


def test_nan_and_pictures_that_change_size_are_refused(tmp_path, robot_bag, ros):
    bag = robot_bag.usual(1.0)
    rows = bag.rows[JOINTS]
    bad = np.full(7, np.nan)
    rows[50:60] = [(t, lambda s: ros["joints"](s, list(JOINT_NAMES), bad)) for t, _ in rows[50:60]]
    with pytest.raises(BagError, match=r"holds NaN or infinity at step \d"):
        load(bag.write(tmp_path / "nan"))
    bag = robot_bag.usual(1.0)
    bag.rows[WRIST][12:] = [(t, lambda s: ros["image"](s, 1, (32, 24))) for t, _ in bag.rows[WRIST][12:]]
    with pytest.raises(BagError, match="change size, from 24x16 to 24x32 at image 12"):
        load(bag.write(tmp_path / "size"))


def test_what_is_cut_empty_or_no_bag_is_named(tmp_path, robot_bag):
    path = robot_bag.usual(0.5).write(tmp_path / "bag")
    data = next(path.glob("*.mcap"))
    whole = data.read_bytes()
    (tmp_path / "bare.mcap").write_bytes(whole)
    assert len(load(tmp_path / "bare.mcap")) == 1
    for content, sentence in {
        whole[: len(whole) // 2]: "stops in the middle.*wvl bag repair",
        b"": "the file is empty",
        b"hello, this is text": "does not begin like an MCAP file",
    }.items():
        data.write_bytes(content)
        with pytest.raises(BagError, match=sentence):
            load(path)
    middle = bytearray(whole)
    middle[len(whole) // 3] ^= 1
    data.write_bytes(middle)
    (path / "metadata.yaml").write_text("hello: [")
    with pytest.raises(BagError, match="cannot be read"):
        load(path)
    (path / "metadata.yaml").unlink()
    with pytest.raises(BagError, match=r"has no metadata\.yaml.*wvl bag repair"):
        load(path)
    (tmp_path / "text.db3").write_text("SELECT")
    with pytest.raises(BagError, match="does not begin like an SQLite database"):
        load(tmp_path / "text.db3")


def test_an_mcap_without_index_and_summary_reads_the_same(tmp_path, robot_bag):
    from mcap.reader import make_reader
    from mcap.writer import IndexType
    from mcap.writer import Writer as McapWriter

    path = robot_bag.usual(0.5).write(tmp_path / "bag")
    for number, chunks in enumerate((True, False)):
        bare = tmp_path / f"bare{number}.mcap"
        with next(path.glob("*.mcap")).open("rb") as source, bare.open("wb") as target:
            writer = McapWriter(
                target,
                use_chunking=chunks,
                index_types=IndexType.NONE,
                use_statistics=False,
                use_summary_offsets=False,
                repeat_channels=False,
                repeat_schemas=False,
            )
            writer.start("ros2")
            channels = {}
            for schema, channel, message in make_reader(source).iter_messages():
                if channel.id not in channels:
                    schema_id = writer.register_schema(schema.name, schema.encoding, schema.data)
                    channels[channel.id] = writer.register_channel(channel.topic, "cdr", schema_id)
                writer.add_message(channels[channel.id], message.log_time, message.data, message.publish_time)
            writer.finish()
        (expected, _), (found, _) = load(path)[0], load(bare)[0]
        np.testing.assert_array_equal(found.joint_position, expected.joint_position)
        np.testing.assert_array_equal(found.images[CAMERAS[1]], expected.images[CAMERAS[1]])
