"""From `make imagine` to the first imagined frame: in this checkout (set up already), three times in a row."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

DOMAIN = "93"
ROOT = Path(__file__).parent.parent


def run() -> dict[str, Any]:
    """Seconds to the first imagined frame and to the end, recording and rendering included."""
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as out:
        for number in (1, 2, 3):
            first, whole = first_frame(ROOT, out)
            figures[f"run {number}"] = (
                f"first imagined frame after {first:.1f} s, bag, video and sheet after {whole:.1f} s"
            )
    return figures


def first_frame(folder: Path, out: str) -> tuple[float, float]:
    """Runs `make imagine` in `folder`; seconds to its first imagined frame and to its end.

    Raises:
        RuntimeError: it ended without one.
    """
    import rclpy
    from rclpy.node import Node

    from wvl_ros.msg import EpisodeStatus
    from wvl_ros.nodes import qos

    os.environ["ROS_DOMAIN_ID"] = DOMAIN
    rclpy.init()
    node = Node("stopwatch")
    seen: list[float] = []

    def receive(status: EpisodeStatus) -> None:
        if status.step >= 3 and not seen:  # a frame is made from three control steps
            seen.append(time.monotonic())

    node.create_subscription(EpisodeStatus, "/imagined/episode_status", receive, qos.STATUS)
    began = time.monotonic()
    # The bootstrapper of this venv's ROS wheels must not reach another venv.
    env = {k: v for k, v in os.environ.items() if k not in ("LD_LIBRARY_PATH", "_ROS_WHEELS_BOOTSTRAP_COMPLETE")}
    process = subprocess.Popen(
        ["make", "imagine", f"ARGS=out:={out}"],
        cwd=folder,
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while process.poll() is None:
            rclpy.spin_once(node, timeout_sec=0.05)
        whole = time.monotonic() - began
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.wait(30)
        node.destroy_node()
        rclpy.shutdown()
    if not seen:
        raise RuntimeError(f"`make imagine` in {folder} ended with {process.returncode} and without an imagined frame")
    return seen[0] - began, whole
