"""The yardstick of `conversion.py`: a plain loop over rosbags and imageio, run by itself: plain_loop.py BAG OUT.

Same chosen frames (nearest to a 15 Hz grid within half a period), same states, same codec settings as our own
conversion; parquet, checksums and reports are left out.
"""

from __future__ import annotations

import sys
from pathlib import Path

import imageio
import numpy as np
from rosbags.rosbag2 import Reader
from rosbags.typesys import Stores, get_typestore

CAMERAS = ["/camera1/camera1/color/image_raw", "/camera2/camera2/color/image_raw", "/camera3/camera3/color/image_raw"]
STATES = ["/franka/joint_states", "/franka_gripper/joint_states"]
RATE = 15


def stamp(message) -> int:
    """Header stamp in ns."""
    return message.header.stamp.sec * 10**9 + message.header.stamp.nanosec


def main(bag: Path, out: Path, options: list[str]) -> None:
    """Converts."""
    store = get_typestore(Stores.ROS2_KILTED)
    stamps: dict[str, list[int]] = {topic: [] for topic in CAMERAS + STATES}
    states: dict[str, list[np.ndarray]] = {topic: [] for topic in STATES}
    with Reader(bag) as reader:
        connections = [c for c in reader.connections if c.topic in stamps]
        for connection, _, raw in reader.messages(connections):
            message = store.deserialize_cdr(raw, connection.msgtype)
            stamps[connection.topic].append(stamp(message))
            if connection.topic in states:
                states[connection.topic].append(np.array(message.position))
        first, last = max(s[0] for s in stamps.values()), min(s[-1] for s in stamps.values())
        steps = first + np.arange(int((last - first) * RATE / 1e9) + 1) * 1e9 / RATE
        chosen = {t: {int(np.abs(np.array(stamps[t]) - step).argmin()) for step in steps} for t in CAMERAS}
        rows = {t: np.searchsorted(stamps[t], steps, side="right") - 1 for t in STATES}
        np.savez(out / "states.npz", **{t.strip("/").replace("/", "_"): np.stack(states[t])[rows[t]] for t in STATES})
        writers = {
            t: imageio.get_writer(
                out / f"{i}.mp4",
                fps=RATE,
                codec="libx264",
                quality=None,
                macro_block_size=1,
                pixelformat="yuv444p",
                output_params=options,
            )
            for i, t in enumerate(CAMERAS)
        }
        count = dict.fromkeys(CAMERAS, 0)
        for connection, _, raw in reader.messages([c for c in connections if c.topic in CAMERAS]):
            topic = connection.topic
            if count[topic] in chosen[topic]:
                message = store.deserialize_cdr(raw, connection.msgtype)
                writers[topic].append_data(message.data.reshape(message.height, message.width, 3))
            count[topic] += 1
        for writer in writers.values():
            writer.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
