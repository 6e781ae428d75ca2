"""What ROS adds to a step: the same world and policy, once in a bare loop and once as nodes over DDS, in lockstep."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import Any

STEPS = 600
DOMAIN = "92"


def run() -> dict[str, Any]:
    """Milliseconds a step, both ways, and their difference."""
    figures: dict[str, Any] = {}
    for policy in ("hold", "random"):
        bare, nodes = bare_loop(policy), node_loop(policy)
        figures[f"tabletop, policy {policy}"] = (
            f"{bare * 1e3:.2f} ms bare, {nodes * 1e3:.2f} ms as nodes: ROS adds {(nodes - bare) * 1e3:.2f} ms a step"
        )
    return figures


def bare_loop(policy_name: str) -> float:
    """Seconds a step of the world and the policy in one process."""
    from wvl_ros.policies.broker import ChunkBroker
    from wvl_ros.policies.registry import make_policy
    from wvl_ros.worlds.tabletop import TabletopWorld

    world = TabletopWorld("pick_place", max_steps=STEPS)
    broker = ChunkBroker(make_policy(policy_name))
    observation, info = world.reset(seed=0)
    broker.reset(0)
    began = time.perf_counter()
    for _ in range(STEPS):
        action = broker.action(observation, info["instruction"], info["commanded_pose"])
        observation, *_, info = world.step(action)
    elapsed = time.perf_counter() - began
    world.close()
    return elapsed / STEPS


def node_loop(policy_name: str) -> float:
    """Seconds a step of the world node and the policy node, two processes."""
    import rclpy
    from rclpy.action import ActionClient
    from rclpy.node import Node

    from wvl_ros.action import RunEpisode
    from wvl_ros.graphs import share

    os.environ["ROS_DOMAIN_ID"] = DOMAIN
    os.environ["FASTDDS_DEFAULT_PROFILES_FILE"] = str(share() / "config" / "shm.xml")
    common = ["--ros-args", "-r", "__ns:=/bench", "--log-level", "warn", "-p"]
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "wvl_ros.nodes.world", *common, "world:=tabletop", "-p", f"max_steps:={STEPS}"]
        ),
        subprocess.Popen([sys.executable, "-m", "wvl_ros.nodes.policy", *common, f"policy:={policy_name}"]),
    ]
    rclpy.init()
    node = Node("bench", namespace="/bench")
    try:
        client = ActionClient(node, RunEpisode, "run_episode")
        if not client.wait_for_server(timeout_sec=60):
            raise RuntimeError("the world node did not start")
        steps: list[float] = []
        sent = client.send_goal_async(
            RunEpisode.Goal(task="pick_place", seed=0), feedback_callback=lambda _: steps.append(time.perf_counter())
        )
        rclpy.spin_until_future_complete(node, sent)
        done = sent.result().get_result_async()
        rclpy.spin_until_future_complete(node, done, timeout_sec=120)
        # The first steps wait for the policy process to come up.
        first = STEPS // 6
        return (steps[STEPS - 1] - steps[first]) / (STEPS - 1 - first)
    finally:
        for child in children:
            child.send_signal(signal.SIGINT)
        for child in children:
            child.wait(20)
        node.destroy_node()
        rclpy.shutdown()
