"""Writes a bag as a lab's own recorder would: three RealSense cameras and franka_ros2, pictures of a real arm."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer

from wvl_ros.sans.bags.topics import message_types
from wvl_ros.sans.droid import read_droid
from wvl_ros.sans.episode import Episode
from wvl_ros.sans.sources import EXAMPLE_FOLDER
from wvl_ros.worlds.droid import CAMERAS, FINGER_TRAVEL, JOINT_NAMES

CAMERA_TOPICS = {camera: f"/camera{i}/camera{i}/color/image_raw" for i, camera in enumerate(CAMERAS, 1)}
START = 1_760_000_000_000_000_000
NOISE = 1.5  # standard deviation of the sensor's noise, of 255


def write_robot_bag(
    path: Path,
    seconds: float,
    *,
    size: tuple[int, int] = (480, 640),
    rate: float = 30.0,
    storage: StoragePlugin = StoragePlugin.MCAP,
    compression: CompressionMode = CompressionMode.NONE,
) -> int:
    """Writes the bag, three images of (height, width) at `rate` Hz and states at 15 Hz; returns its size in bytes."""
    episode = read_droid(EXAMPLE_FOLDER)
    pictures = {camera: moving_pictures(episode, camera, size, rate) for camera in CAMERAS}
    writer = Writer(path, version=9, storage_plugin=storage)
    if compression is not CompressionMode.NONE:
        writer.set_compression(compression, CompressionFormat.ZSTD)
    with writer:
        kinds = dict.fromkeys(CAMERA_TOPICS.values(), "sensor_msgs/msg/Image")
        kinds |= dict.fromkeys(("/franka/joint_states", "/franka_gripper/joint_states"), "sensor_msgs/msg/JointState")
        connections = {t: writer.add_connection(t, kind, typestore=message_types()) for t, kind in kinds.items()}

        def write(topic: str, stamp: int, **fields: Any) -> None:
            kind = kinds[topic]
            message = message_types().types[kind](header=_header(stamp), **fields)
            writer.write(connections[topic], stamp + 2_000_000, message_types().serialize_cdr(message, kind))

        for i in range(int(seconds * rate)):
            for k, (camera, topic) in enumerate(CAMERA_TOPICS.items()):
                stamp = START + int((i + 0.1 * k) * 1e9 / rate)
                data = next(pictures[camera]).reshape(-1)
                height, width = size
                facts = {"height": height, "width": width, "encoding": "rgb8", "is_bigendian": 0, "step": width * 3}
                write(topic, stamp, data=data, **facts)
            if i % max(1, round(rate / 15)) == 0:
                row = int(i / rate * 15) % len(episode)
                stamp = START + int(i * 1e9 / rate) + 1_000_000
                empty = np.empty(0)
                joints, finger = episode.joint_position[row], FINGER_TRAVEL * (1 - episode.gripper_position[row, 0])
                write(
                    "/franka/joint_states", stamp, name=list(JOINT_NAMES), position=joints, velocity=empty, effort=empty
                )
                fingers = ["fr3_finger_joint1", "fr3_finger_joint2"]
                values = np.full(2, finger)
                write(
                    "/franka_gripper/joint_states", stamp, name=fingers, position=values, velocity=empty, effort=empty
                )
    return sum(file.stat().st_size for file in path.iterdir())


def moving_pictures(episode: Episode, camera: str, size: tuple[int, int], rate: float) -> Iterator[NDArray[np.uint8]]:
    """The episode's 5 Hz pictures for ever, to and fro, scaled up and faded into each other, with a sensor's noise."""
    height, width = size
    big = [
        np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS)).astype(np.int16)
        for picture in episode.images[camera]
    ]
    big += big[-2:0:-1]
    rng = np.random.default_rng(0)
    grain = rng.normal(0, NOISE, (height + 64, width + 64, 3)).round().astype(np.int16)
    i = 0
    while True:
        at, share = divmod(i * 5 / rate, 1)
        share16 = int(share * 256)
        a, b = big[int(at) % len(big)], big[int(at + 1) % len(big)]
        y, x = rng.integers(0, 64, 2)
        mixed = a + (((b - a).astype(np.int32) * share16) >> 8).astype(np.int16) + grain[y : y + height, x : x + width]
        yield np.clip(mixed, 0, 255).astype(np.uint8)
        i += 1


def _header(stamp: int) -> Any:
    types = message_types().types
    time = types["builtin_interfaces/msg/Time"](sec=stamp // 10**9, nanosec=stamp % 10**9)
    return types["std_msgs/msg/Header"](stamp=time, frame_id="")
