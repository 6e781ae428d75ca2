"""Three 640x480 rgb8 cameras at 30 Hz from the world node to a subscriber in another process, through real DDS."""

from __future__ import annotations

import multiprocessing
import os
import time
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

RATE, SECONDS, HEIGHT, WIDTH = 30, 20, 480, 640
DOMAIN = "91"


def run() -> dict[str, Any]:
    """Share that arrives and latency from publish call to the subscriber's callback."""
    from wvl_ros.graphs import share

    os.environ["ROS_DOMAIN_ID"] = DOMAIN
    os.environ["FASTDDS_DEFAULT_PROFILES_FILE"] = str(share() / "config" / "shm.xml")
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    subscriber = context.Process(target=_subscribe, args=(there,))
    subscriber.start()
    here.recv()  # it is ready
    sent, load = _publish(here)
    latencies = here.recv()
    subscriber.join()
    figures: dict[str, Any] = {"publisher, share of a core": f"{load:.0%}"}
    for camera, values in latencies.items():
        ms = np.array(values) * 1e3
        figures[camera] = (
            f"{len(ms)} of {sent} arrived ({len(ms) / sent:.1%}), median {np.median(ms):.1f} ms, "
            f"p99 {np.percentile(ms, 99):.1f} ms, max {ms.max():.1f} ms"
        )
    return figures


def _publish(pipe: Connection) -> tuple[int, float]:
    import rclpy

    from wvl_ros.nodes.episode_loop import StepReport
    from wvl_ros.nodes.world_node import WorldNode
    from wvl_ros.worlds.droid import CAMERAS, RESET_JOINTS

    rclpy.init(args=["--ros-args", "-r", "__ns:=/bench"])
    node = WorldNode()
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (8, HEIGHT, WIDTH, 3), np.uint8)
    state = {"joint_position": RESET_JOINTS, "cartesian_position": np.zeros(6), "gripper_position": np.zeros(1)}
    pipe.send("publishing")
    pipe.recv()  # matched
    count = RATE * SECONDS
    cpu, began = time.process_time(), time.monotonic()
    for i in range(count):
        time.sleep(max(0.0, began + i / RATE - time.monotonic()))
        report = StepReport("bench", time.time_ns(), i, count, "", "", "", 0, np.zeros(7))
        node.observed({camera: images[(i + k) % 8] for k, camera in enumerate(CAMERAS)} | state, report)
    load = (time.process_time() - cpu) / (time.monotonic() - began)
    time.sleep(1.0)
    pipe.send("done")
    node.close()
    node.destroy_node()
    rclpy.shutdown()
    return count, load


def _subscribe(pipe: Connection) -> None:
    import rclpy
    from rclpy.executors import SingleThreadedExecutor
    from rclpy.node import Node
    from sensor_msgs.msg import Image

    from wvl_ros.nodes import qos
    from wvl_ros.nodes.images import image_array
    from wvl_ros.worlds.droid import CAMERAS

    rclpy.init(args=["--ros-args", "-r", "__ns:=/bench"])
    node = Node("subscriber")
    latencies: dict[str, list[float]] = {camera: [] for camera in CAMERAS}

    def receive(message: Image, camera: str) -> None:
        now = time.time_ns()
        assert image_array(message).shape == (HEIGHT, WIDTH, 3)
        latencies[camera].append(now * 1e-9 - message.header.stamp.sec - message.header.stamp.nanosec * 1e-9)

    for camera in CAMERAS:
        topic = f"{camera}/image_raw"
        node.create_subscription(Image, topic, lambda m, c=camera: receive(m, c), qos.OBSERVATION)
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    pipe.send("ready")
    pipe.recv()
    while any(node.count_publishers(f"{camera}/image_raw") == 0 for camera in CAMERAS):
        executor.spin_once(timeout_sec=0.05)
    time.sleep(0.5)
    pipe.send("matched")
    while not pipe.poll():
        executor.spin_once(timeout_sec=0.05)
    pipe.send(latencies)
    rclpy.shutdown()
