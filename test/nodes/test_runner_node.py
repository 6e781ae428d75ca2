"""The runner node beside a world that is not ready yet."""

from __future__ import annotations

import time

import pytest

rclpy = pytest.importorskip("rclpy")

from rclpy.action import ActionServer  # noqa: E402

from wvl_ros.action import RunEpisode  # noqa: E402
from wvl_ros.msg import ActionChunk, EpisodeStatus  # noqa: E402
from wvl_ros.nodes import qos  # noqa: E402
from wvl_ros.sans.bags.topics import IDLE  # noqa: E402


def test_no_episode_is_asked_for_before_the_world_knows_the_runner(environment, monkeypatch, start):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    rclpy.init()
    node = rclpy.create_node("world", namespace="/real")
    goals: list[RunEpisode.Goal] = []

    def finished(handle):
        goals.append(handle.request)
        handle.succeed()
        return RunEpisode.Result(episode_id="one", outcome="success", steps=1)

    def spin(seconds, condition=lambda: False):
        end = time.monotonic() + seconds
        while time.monotonic() < end and not condition():
            rclpy.spin_once(node, timeout_sec=0.05)

    server = ActionServer(node, RunEpisode, "run_episode", finished)
    chunks = node.create_publisher(ActionChunk, "action_chunk", qos.CHUNK)
    status = node.create_publisher(EpisodeStatus, "episode_status", qos.STATUS)
    runner = start("runner")
    try:
        spin(30, chunks.get_subscription_count)
        spin(4)  # far longer than it waits for a recorder
        assert not goals
        status.publish(EpisodeStatus(state=IDLE))
        spin(30, lambda: goals and runner.process.poll() is not None)
        assert goals
        assert runner.wait() == 0, runner.output
    finally:
        server.destroy()
        node.destroy_node()
        rclpy.shutdown()
