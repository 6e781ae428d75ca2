"""Real node processes over real DDS, each test in a ROS domain of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from wvl_ros.shared_memory import free_leftovers

pytest.importorskip("rclpy")

REPOSITORY = Path(__file__).parents[2]
PATIENCE = 60.0  # s; machines may be busy


class Process:
    """One node's process and what it printed so far."""

    def __init__(self, executable: str, arguments: list[str], folder: Path, environment: dict[str, str]) -> None:
        self.executable = executable
        self.log = folder / f"{executable}-{len(list(folder.glob('*.log')))}.log"
        command = [
            sys.executable,
            "-c",
            f"from wvl_ros.nodes.{executable} import main; main()",
            "--ros-args",
            *arguments,
        ]
        with self.log.open("wb") as file:
            self.process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment, cwd=folder)

    @property
    def output(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def wait_for(self, text: str, patience: float = PATIENCE) -> None:
        """Waits until the node has printed a text."""
        deadline = time.monotonic() + patience
        while text not in self.output:
            assert self.process.poll() is None or text in self.output, f"{self.executable} ended: {self.output}"
            assert time.monotonic() < deadline, f"{self.executable} did not say '{text}': {self.output}"
            time.sleep(0.05)

    def end(self, number: int = signal.SIGINT) -> int:
        """Sends a signal and returns the exit code."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self, patience: float = PATIENCE) -> int:
        """The exit code, once the process has ended."""
        return self.process.wait(patience)


@pytest.fixture
def environment(tmp_path: Path, worker_id: str) -> dict[str, str]:
    """Environment of a node: a domain for each xdist worker, this machine only, the big shared memory."""
    number = int(worker_id.removeprefix("gw")) if worker_id.startswith("gw") else 9
    return dict(os.environ) | {
        "ROS_DOMAIN_ID": str(60 + number),
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        "FASTDDS_DEFAULT_PROFILES_FILE": str(REPOSITORY / "config" / "shm.xml"),
        "ROS_LOG_DIR": str(tmp_path / "ros_log"),
        "PYTHONUNBUFFERED": "1",
    }


@pytest.fixture
def worker_id(request: pytest.FixtureRequest) -> str:
    """The xdist worker's name, also without xdist."""
    return str(getattr(request.config, "workerinput", {}).get("workerid", "master"))


@pytest.fixture
def start(tmp_path: Path, environment: dict[str, str]) -> Iterator[Callable[..., Process]]:
    """Starts a node: `start('world', world='recorded', namespace='/real')`; all are gone after the test."""
    processes: list[Process] = []

    def run(executable: str, *arguments: str, namespace: str = "/real", **parameters: object) -> Process:
        words = ["-r", f"__ns:={namespace}", *arguments]
        for name, value in parameters.items():
            words += ["-p", f"{name}:={str(value).lower() if isinstance(value, bool) else value}"]
        processes.append(Process(executable, words, tmp_path, environment))
        return processes[-1]

    yield run
    for process in processes:
        if process.process.poll() is None:
            process.process.kill()
            process.process.wait()
    free_leftovers()


SMALL = {"source": "droid", "image_height": 48, "image_width": 80}


@pytest.fixture
def recorded(start: Callable[..., Process]) -> Callable[..., Process]:
    """Starts a world node that plays the shipped DROID episode with small pictures."""
    return lambda *arguments, **parameters: start("world", *arguments, **({"world": "recorded"} | SMALL | parameters))
