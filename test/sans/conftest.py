"""Fixtures for bags: a writer of whatever messages, and a lab's bag to vary."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer

from wvl_ros.sans.bags.topics import message_types
from wvl_ros.worlds.droid import FINGER_TRAVEL, JOINT_NAMES, RESET_JOINTS

START = 1_700_000_000_000_000_000


def make(kind: str, **fields: Any) -> Any:
    return message_types().types[kind](**fields)


def header(stamp: int) -> Any:
    time = make("builtin_interfaces/msg/Time", sec=stamp // 10**9, nanosec=stamp % 10**9)
    return make("std_msgs/msg/Header", stamp=time, frame_id="")


def image(stamp: int, value: int, size: tuple[int, int] = (16, 24), encoding: str = "rgb8") -> Any:
    height, width = size
    channels = {"rgb8": 3, "bgra8": 4, "yuv422_yuy2": 2, "mono8": 1}[encoding]
    data = np.full(height * width * channels, value, np.uint8)
    facts = {"height": height, "width": width, "encoding": encoding, "is_bigendian": 0, "step": width * channels}
    return make("sensor_msgs/msg/Image", header=header(stamp), data=data, **facts)


def joints(stamp: int, names: list[str], values: Any) -> Any:
    empty = np.empty(0)
    return make(
        "sensor_msgs/msg/JointState",
        header=header(stamp),
        name=names,
        position=np.ascontiguousarray(values, float),
        velocity=empty,
        effort=empty,
    )


@dataclass
class RobotBag:
    """A bag of three RealSense cameras and franka_ros2, to change and then write.

    `rows[topic]` has (time in ns from the start, message made for a stamp); picture i of a camera is all i, the first
    joint is RESET + t, the gripper closes at half time.
    """

    rows: dict[str, list[tuple[int, Callable[[int], Any]]]] = field(default_factory=dict)
    delay: int = 3_000_000  # from header stamp to recording

    @classmethod
    def usual(cls, seconds: float = 2.0, rate: float = 30.0, states: float = 100.0) -> RobotBag:
        bag = cls()
        for k in (1, 2, 3):
            bag.rows[f"/camera{k}/camera{k}/color/image_raw"] = [
                (int(i * 1e9 / rate) + k * 1_000_000, lambda s, i=i: image(s, i % 256))
                for i in range(int(seconds * rate))
            ]
        arm, hand, fingers = [], [], ["fr3_finger_joint1", "fr3_finger_joint2"]
        for i in range(int(seconds * states)):
            t = i / states
            values = RESET_JOINTS + np.eye(7)[0] * t * 0.1
            arm.append((int(t * 1e9), lambda s, v=values: joints(s, [*JOINT_NAMES][::-1], v[::-1])))
            width = FINGER_TRAVEL if t < seconds / 2 else 0.01
            hand.append((int(t * 1e9), lambda s, w=width: joints(s, fingers, [w, w])))
        bag.rows["/franka/joint_states"], bag.rows["/franka_gripper/joint_states"] = arm, hand
        return bag

    def write(
        self,
        path: Path,
        *,
        storage: StoragePlugin = StoragePlugin.MCAP,
        compression: CompressionMode = CompressionMode.NONE,
        start: int = START,
        note: dict[str, str] | None = None,
    ) -> Path:
        writer = Writer(path, version=9, storage_plugin=storage)
        if compression is not CompressionMode.NONE:
            writer.set_compression(compression, CompressionFormat.ZSTD)
        with writer:
            connections: dict[str, Any] = {}
            every = [(t, topic, build) for topic, rows in self.rows.items() for t, build in rows]
            for t, topic, build in sorted(every, key=lambda row: row[0]):
                message = build(start + t)
                kind = message.__msgtype__
                if topic not in connections:
                    connections[topic] = writer.add_connection(topic, kind, typestore=message_types())
                raw = message_types().serialize_cdr(message, kind)
                writer.write(connections[topic], start + t + self.delay, raw)
            for key, value in (note or {}).items():
                writer.set_custom_data(key, value)
        return path


@pytest.fixture
def robot_bag() -> type[RobotBag]:
    """`robot_bag.usual().write(path)` writes a lab's bag; change its `rows` before."""
    return RobotBag


@pytest.fixture
def ros() -> dict[str, Callable[..., Any]]:
    """Makers of messages: make, header, image, joints."""
    return {"make": make, "header": header, "image": image, "joints": joints}
