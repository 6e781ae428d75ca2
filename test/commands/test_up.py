"""`wvl up` with real nodes: a run to its end, the death of a node, Ctrl-C; and its processes by themselves."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from wvl_ros.commands import processes
from wvl_ros.errors import ConfigError
from wvl_ros.graphs import Node

pytest.importorskip("rclpy")

PATIENCE = 90.0  # s; machines may be busy


class Up:
    """A running `wvl up real_robot`."""

    def __init__(self, folder: Path, domain: int, *words: str) -> None:
        self.folder = folder
        env = dict(os.environ) | {
            "ROS_DOMAIN_ID": str(domain),
            "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
            "ROS_LOG_DIR": str(folder / "log"),
        }
        command = [sys.executable, "-m", "wvl_ros.cli", "up", "real_robot", "policy:=hold", *words]
        self.out, self.err = folder / "out.txt", folder / "err.txt"
        with self.out.open("w") as out, self.err.open("w") as err:
            self.process = subprocess.Popen(command, env=env, cwd=folder, stdout=out, stderr=err)

    def children(self) -> dict[str, int]:
        """Process ids of the nodes, by their executable."""
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                words = (entry / "cmdline").read_bytes().decode().split("\0")
            except OSError:  # it has just ended
                continue
            names = [word.rpartition(".")[2] for word in words if word.startswith("wvl_ros.nodes.")]
            if parent == self.process.pid and names:
                found[names[0]] = int(entry.name)
        return found

    def wait_for(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.05)

    def said(self) -> str:
        return self.out.read_text() + self.err.read_text()

    def stepping(self) -> bool:
        return re.search(r"step [1-9]", self.said()) is not None


@pytest.fixture
def up(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., Up]]:
    """Starts `wvl up real_robot policy:=hold ...`; nothing of it is left after the test."""
    worker = getattr(request.config, "workerinput", {}).get("workerid", "gw0")
    started: list[Up] = []

    def start(*words: str) -> Up:
        started.append(Up(tmp_path, 80 + int(worker.removeprefix("gw")), *words))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()


def gone(pids: dict[str, int]) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in pids.values())


def test_a_run_ends_with_its_recording(up: Callable[..., Up], tmp_path: Path) -> None:
    run = up("max_steps:=10", "--json")
    run.wait_for(lambda: len(run.children()) == 4)
    children = run.children()
    assert run.process.wait(PATIENCE) == 0, run.said()
    result = json.loads(run.out.read_text())
    assert result["nodes"] == dict.fromkeys(("real.world", "real.policy", "real.recorder", "real.runner"), 0)
    (recording,) = result["recordings"]
    assert (tmp_path / recording / "bag" / "metadata.yaml").is_file()
    assert gone(children)
    assert {path.suffix for path in Path(result["log"]).iterdir()} == {".log", ".yaml"}


def test_a_killed_node_is_named_and_the_others_stop(up: Callable[..., Up]) -> None:
    run = up("max_steps:=100000")
    run.wait_for(run.stepping)
    children = run.children()
    os.kill(children["policy"], signal.SIGKILL)
    assert run.process.wait(PATIENCE) == 1
    assert "wvl: real.policy was killed by SIGKILL; stopping the others." in run.said()
    assert "The policy node is gone" in run.said()
    assert gone(children)


def test_ctrl_c_while_an_episode_runs_closes_its_bag(up: Callable[..., Up], tmp_path: Path) -> None:
    run = up("max_steps:=100000")
    run.wait_for(run.stepping)
    children = run.children()
    run.process.send_signal(signal.SIGINT)
    assert run.process.wait(PATIENCE) == 130
    assert "Traceback" not in run.said()
    assert gone(children)
    (recording,) = (tmp_path / "recordings").glob("[!.]*")
    assert (recording / "bag" / "metadata.yaml").is_file()


def test_ctrl_c_while_the_nodes_start_leaves_none(up: Callable[..., Up]) -> None:
    run = up()
    run.wait_for(lambda: bool(run.children()))
    children = run.children()
    run.process.send_signal(signal.SIGINT)
    assert run.process.wait(PATIENCE) == 130
    assert "Traceback" not in run.said()
    assert gone(children)


STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("[WARN] [12.5] [a.b]: I stay.", flush=True)
print("[INFO] [12.6] [a.b]: Never mind.", flush=True)
time.sleep(600)
"""


def test_a_node_that_ignores_signals_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "CLOSING_SECONDS", 0.2)
    monkeypatch.setattr(processes, "HURRY_SECONDS", 0.2)
    shown: list[str] = []
    node = Node("world", "b", "/a")
    child = processes.Child(node, [sys.executable, "-c", STUBBORN], os.environ, tmp_path / "log", shown.append)
    child.read()
    deadline = time.monotonic() + PATIENCE
    while "Never" not in (child.log.read_text() if child.log and child.log.exists() else ""):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    processes.stop([child], lambda: 0)
    child.finish()
    assert child.code == -signal.SIGKILL
    assert child.ending() == "a.b was killed by SIGKILL"
    assert shown == ["[WARN] [a.b]: I stay."]


READER = """
import json, rclpy
rclpy.init()
node = rclpy.create_node("reader", automatically_declare_parameters_from_overrides=True)
print(json.dumps({name: p.value for name, p in node.get_parameters_by_prefix("").items()}))
"""


def test_parameters_keep_their_types(tmp_path: Path) -> None:
    """A text that looks like a number or a truth value must reach the node as a text."""
    values = {"instruction": "yes", "task": "7", "source": "", "seed": 7, "render": True, "worlds": ["1", "/real/a"]}
    words = processes.ros_arguments(Node("world", "world", "/real", values, package="other"), tmp_path, tmp_path)
    command = [sys.executable, "-c", READER, *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert values.items() <= json.loads(done.stdout).items()


def test_a_package_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMENT_PREFIX_PATH", "")
    with pytest.raises(ConfigError, match="rviz2 is not installed: source a ROS 2 that has it"):
        processes.command(Node("rviz2", "rviz2", "/", package="rviz2"))
