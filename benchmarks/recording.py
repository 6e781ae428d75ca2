"""What the recorder node loses and costs: three 640x480 rgb8 cameras and 15 Hz states from another process, over DDS.

`python -m benchmarks recording`; WVL_BENCH_BAGS names a folder for the bags (6 GB; the default is the temporary
folder), which are deleted afterwards unless WVL_BENCH_KEEP is set.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

HEIGHT, WIDTH, STATE_HZ = 480, 640, 15
CASES = ((30, 60), (100, 20))  # Hz, s
DOMAIN, NAMESPACE = "92", "/bench"
PATIENCE = 120.0  # s for the bag to be closed


def run() -> dict[str, Any]:
    """Images lost of those sent, the recorder's share of a core, and the load of the machine."""
    from wvl_ros.graphs import share

    os.environ |= {"ROS_DOMAIN_ID": DOMAIN, "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}
    os.environ["FASTDDS_DEFAULT_PROFILES_FILE"] = str(share() / "config" / "shm.xml")
    out = Path(tempfile.mkdtemp(prefix="wvl_recording_", dir=os.environ.get("WVL_BENCH_BAGS")))
    figures: dict[str, Any] = {}
    try:
        for rate, seconds in CASES:
            figures |= _measure(out, rate, seconds)
    finally:
        if os.environ.get("WVL_BENCH_KEEP"):
            figures["bags"] = str(out)
        else:
            shutil.rmtree(out, ignore_errors=True)
    return figures


def _measure(out: Path, rate: int, seconds: int) -> dict[str, Any]:
    load = os.getloadavg()[0]
    words = ["--ros-args", "-r", f"__ns:={NAMESPACE}", "-p", f"out:={out}", "-p", "render:=false"]
    with tempfile.TemporaryFile("w+") as log:
        recorder = subprocess.Popen([sys.executable, "-m", "wvl_ros.nodes.recorder", *words], stderr=log)
        try:
            publisher = [sys.executable, "-m", "benchmarks.recording", str(rate), str(seconds), str(recorder.pid)]
            result = subprocess.run(publisher, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1]
        finally:
            recorder.send_signal(signal.SIGINT)
            recorder.wait()
            log.seek(0)
            sys.stderr.write("".join(line for line in log if "WARN" in line or "ERROR" in line))
    share, took, first, bag = result.split(maxsplit=3)
    sent, arrived = 3 * rate * seconds, _count(Path(bag), int(first), rate, seconds)
    size = sum(file.stat().st_size for file in Path(bag).iterdir())
    return {
        f"{rate} Hz for {seconds} s": f"{sent - arrived} of {sent} images lost, {float(share):.0%} of a core, "
        f"{size / float(took) / 1e6:.0f} MB/s; load of the machine before: {load:.1f}"
    }


def _count(bag: Path, first: int, rate: int, seconds: int) -> int:
    """Images in the bag whose stamp is one that was sent, each once, with that stamp as bag time."""
    from rosbags.rosbag2 import Reader

    from wvl_ros.sans.bags.recording import message_stamp
    from wvl_ros.worlds.droid import CAMERAS

    expected = {first + _offset(i, rate) for i in range(rate * seconds)}
    found: dict[str, set[int]] = {f"{NAMESPACE}/{camera}/image_raw": set() for camera in CAMERAS}
    with Reader(bag) as reader:
        for connection, stamp, data in reader.messages([c for c in reader.connections if c.topic in found]):
            if message_stamp(data) == stamp and len(data) > HEIGHT * WIDTH * 3:
                found[connection.topic].add(stamp)
    return sum(len(stamps & expected) for stamps in found.values())


def _offset(index: int, rate: int) -> int:
    return index * 1_000_000_000 // rate


def _cpu(process: int) -> float:
    """CPU seconds of a process."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def publish(rate: int, seconds: int, recorder: int) -> str:
    """Plays a world: images at `rate` Hz, states, reward and status at 15 Hz; ends when the bag is closed."""
    import rclpy
    from rclpy._rclpy_pybind11 import RCLError
    from rclpy.executors import SingleThreadedExecutor
    from sensor_msgs.msg import Image

    from wvl_ros.msg import EpisodeStatus, RecordedEpisode, Reward
    from wvl_ros.nodes import qos
    from wvl_ros.nodes.images import image_message
    from wvl_ros.nodes.messages import flange_pose, joint_state, to_time
    from wvl_ros.sans.bags.topics import FINISHED, IDLE, RUNNING
    from wvl_ros.worlds.droid import CAMERAS, RESET_JOINTS

    rclpy.init(args=["--ros-args", "-r", f"__ns:={NAMESPACE}"])
    node = rclpy.create_node("world")
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    cameras = [node.create_publisher(Image, f"{camera}/image_raw", qos.OBSERVATION) for camera in CAMERAS]
    state = {"joint_position": RESET_JOINTS, "cartesian_position": np.zeros(6), "gripper_position": np.zeros(1)}
    joints, pose = joint_state(state, to_time(0)), flange_pose(state, to_time(0))
    publishers = {kind: node.create_publisher(kind, name, qos.OBSERVATION) for kind, name in (
        (type(joints), "joint_states"), (type(pose), "cartesian_position"), (Reward, "reward"))}  # fmt: skip
    statuses = node.create_publisher(EpisodeStatus, "episode_status", qos.STATUS)
    statuses.publish(EpisodeStatus(state=IDLE))
    closed: list[RecordedEpisode] = []
    node.create_subscription(RecordedEpisode, "recorded_episode", closed.append, qos.STATUS)
    while not node.count_publishers("recorded_episode"):
        executor.spin_once(timeout_sec=0.1)
    time.sleep(2.0)
    rng = np.random.default_rng(0)
    images = [
        image_message(rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8), to_time(0), "camera_optical_frame")
        for _ in range(8)
    ]
    name, first, began = f"bench-{rate}", time.time_ns(), time.monotonic()
    before, step = _cpu(recorder), -1

    def publish_state(state: int) -> None:
        stamp = to_time(first + _offset(step, STATE_HZ))
        reward = Reward(episode_id=name, step=step)
        for message in (joints, pose, reward):
            message.header.stamp = stamp
            publishers[type(message)].publish(message)
        status = EpisodeStatus(episode_id=name, state=state, step=step, outcome="failure" if state == FINISHED else "")
        status.header.stamp = stamp
        statuses.publish(status)

    for i in range(rate * seconds):
        if (wait := began + i / rate - time.monotonic()) > 0:
            time.sleep(wait)
        if i * STATE_HZ // rate > step:
            step += 1
            publish_state(RUNNING)
        for number, camera in enumerate(cameras):
            image = images[(i + number) % 8]
            image.header.stamp = to_time(first + _offset(i, rate))
            with contextlib.suppress(RCLError):  # refused by DDS: that image is lost
                camera.publish(image)
    took = time.monotonic() - began
    step += 1
    publish_state(FINISHED)
    deadline = time.monotonic() + PATIENCE
    while not closed and time.monotonic() < deadline:
        executor.spin_once(timeout_sec=0.1)
    share = (_cpu(recorder) - before) / took
    rclpy.shutdown()
    return f"{share} {took} {first} {closed[0].bag}"


if __name__ == "__main__":
    print(publish(*map(int, sys.argv[1:4])))
