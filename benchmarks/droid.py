"""DROID episodes imported, compared and replayed; WVL_DROID names a folder of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

DOMAIN = "93"
NUMBERS = ("joint_position", "cartesian_position", "gripper_position", "action", "reward")


def run() -> dict[str, Any]:
    """Lengths, labels and PSNR of what `wvl convert` makes, and the rate at which one plays; by default the example."""
    from wvl_ros.sans.dataset import Dataset
    from wvl_ros.sans.droid import read_droid
    from wvl_ros.sans.sources import EXAMPLE_FOLDER

    folder = os.environ.get("WVL_DROID")
    paths = sorted(path.parent for path in Path(folder).glob("*/annotation.json")) if folder else [EXAMPLE_FOLDER]
    originals = {episode.episode_id: episode for episode in map(read_droid, paths)}
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "sans"
        began = time.perf_counter()
        _wvl("convert", *map(str, paths), "--out", str(root))
        figures["convert"] = f"{len(paths)} episodes in {time.perf_counter() - began:.1f} s"
        dataset = Dataset.open(root)
        for record in dataset.records:
            original, stored = originals[record.episode_id], dataset.read(record.index)
            same = all(np.array_equal(getattr(original, name), getattr(stored, name)) for name in NUMBERS)
            ratio = np.concatenate([_psnr(original.images[c], stored.images[c]) for c in original.images])
            figures[record.episode_id] = (
                f"{record.length} steps, {record.outcome} ({record.outcome_source}), numbers "
                f"{'equal' if same else 'DIFFER'}, PSNR mean {ratio.mean():.1f}, least {ratio.min():.1f} dB"
            )
        figures["replay of the first"] = _replay(f"{root}#0", Path(scratch))
    return figures


def _psnr(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    from wvl_ros.evaluation.metrics import psnr

    return psnr(a, b)


def _wvl(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "wvl_ros.cli", *words], check=True, stdout=subprocess.DEVNULL)


def _replay(source: str, scratch: Path) -> str:
    """Plays an episode through the real nodes and listens to its topics from another process."""
    from wvl_ros.graphs import share

    os.environ |= {"ROS_DOMAIN_ID": DOMAIN, "FASTDDS_DEFAULT_PROFILES_FILE": str(share() / "config" / "shm.xml")}
    listener = subprocess.Popen([sys.executable, "-m", "benchmarks.droid"], stdout=subprocess.PIPE, text=True)
    words = ["robot:=recorded", f"source:={source}", "policy:=replay", f"out:={scratch / 'recordings'}"]
    try:
        _wvl("up", "real_robot", *words)
    finally:
        listener.terminate()
        stamps, arrivals = json.loads(listener.communicate()[0])
    seconds = np.array(stamps)
    rate = (len(seconds) - 1) / (seconds[-1] - seconds[0])
    off = np.abs(np.diff(arrivals) - 1 / 15) * 1e3
    return (
        f"{len(seconds)} images at {rate:.2f} Hz by their stamps; arrivals off by {np.percentile(off, 95):.1f} ms (p95)"
    )


def listen() -> None:
    """Notes stamps and arrivals of a camera's images until SIGTERM."""
    import rclpy
    from rclpy.executors import ExternalShutdownException
    from rclpy.node import Node
    from sensor_msgs.msg import Image

    from wvl_ros.nodes import qos

    rclpy.init()
    node = Node("listener")
    found: list[tuple[float, float]] = []

    def note(message: Image) -> None:
        found.append((message.header.stamp.sec + message.header.stamp.nanosec * 1e-9, time.monotonic()))

    node.create_subscription(Image, "/real/exterior_image_1_left/image_raw", note, qos.OBSERVATION)
    try:
        rclpy.spin(node)
    except ExternalShutdownException:
        print(json.dumps([[stamp for stamp, _ in found], [arrival for _, arrival in found]]))


if __name__ == "__main__":
    listen()
