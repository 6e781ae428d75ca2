"""The nodes of a graph as child processes: started, watched and stopped without launch_ros."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

import yaml

from wvl_ros.errors import ConfigError
from wvl_ros.graphs import PACKAGE, Node

CLOSING_SECONDS = 15.0  # a recorder may still be closing its bag and rendering
HURRY_SECONDS = 3.0
POLL_SECONDS = 0.05
_LOG_LINE = re.compile(r"\[(DEBUG|INFO|WARN|ERROR|FATAL)\] (?:\[[\d.]+\] )?(.*)")  # ROS: level, time, logger and text
_PR_SET_PDEATHSIG = 1


def command(node: Node) -> list[str]:
    """The program of a node.

    Raises:
        ConfigError: it belongs to a package that is not installed.
    """
    if node.package == PACKAGE:
        return [sys.executable, "-m", f"{PACKAGE}.nodes.{node.executable}", *node.arguments]
    for prefix in filter(None, os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep)):
        program = Path(prefix) / "lib" / node.package / node.executable
        if program.is_file():
            return [str(program), *node.arguments]
    name = node.package.replace("_", "-")
    raise ConfigError(
        f"{node.package} is not installed: source a ROS 2 that has it (Debian package ros-<distro>-{name}),"
        " or leave out rviz:=true."
    )


def ros_arguments(node: Node, config: Path, folder: Path) -> list[str]:
    """`--ros-args ...` of a node; its own parameters go through a file in `folder`, which keeps their types."""
    words = ["--ros-args", "-r", f"__node:={node.name}", "-r", f"__ns:={node.namespace}"]
    for source, target in node.remappings:
        words += ["-r", f"{source}:={target}"]
    if node.package == PACKAGE:
        words += ["--params-file", str(config)]
    if node.parameters:
        own = folder / f"{label(node)}.yaml"
        own.write_text(yaml.safe_dump({node.path: {"ros__parameters": dict(node.parameters)}}), encoding="utf-8")
        words += ["--params-file", str(own)]
    return words


def label(node: Node) -> str:
    """A node's name in messages and file names: `imagined.policy`."""
    return node.path.strip("/").replace("/", ".")


class Child:
    """A node's process.

    With `log`, its output goes to that file and warnings and worse also to `report`; without, it has the terminal, and
    with `keyboard` its keys.
    """

    def __init__(
        self,
        node: Node,
        words: Sequence[str],
        env: Mapping[str, str],
        log: Path | None,
        report: Callable[[str], None],
        stdout: IO[str] | None = None,
        keyboard: bool = False,
    ) -> None:
        self.node = node
        self.name = label(node)
        self.log = log
        self._report = report
        self._thread: threading.Thread | None = None
        self.process = subprocess.Popen(
            list(words),
            env=dict(env),
            stdin=None if keyboard else subprocess.DEVNULL,
            stdout=stdout if log is None else subprocess.PIPE,
            stderr=None if log is None else subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C reaches us alone, and we pass it on in order
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509  no threads yet, see read
        )

    def read(self) -> None:
        """Starts to read its output: only after the last child is started, because forking with threads is unsafe."""
        if self.log is not None:
            self._thread = threading.Thread(target=self._copy, name=self.name, daemon=True)
            self._thread.start()

    def _copy(self) -> None:
        assert self.process.stdout is not None
        assert self.log is not None
        important = False
        with self.log.open("w", encoding="utf-8", buffering=1) as file:
            for line in self.process.stdout:
                file.write(line)
                logged = _LOG_LINE.match(line)
                if logged:
                    important = logged[1] in ("WARN", "ERROR", "FATAL")
                elif line.startswith("Traceback"):
                    important = True  # and so are the lines that follow it
                if important:
                    self._report(f"[{logged[1]}] {logged[2]}" if logged else f"[{self.name}] {line.rstrip()}")

    @property
    def code(self) -> int | None:
        """Its exit code, minus the signal's number if one killed it, None while it runs."""
        return self.process.poll()

    def ending(self) -> str:
        """How it ended, in words."""
        code = self.process.returncode
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return f"{self.name} {how}"

    def send(self, number: int) -> None:
        """Sends a signal; SIGKILL also to all that it started."""
        with contextlib.suppress(ProcessLookupError):
            if number == signal.SIGKILL:
                os.killpg(self.process.pid, number)
            elif self.code is None:
                self.process.send_signal(number)

    def finish(self) -> None:
        """Leaves nothing behind: what it started ends with it, and the last line of its output is in the log."""
        self.send(signal.SIGKILL)
        if self._thread is not None:
            self._thread.join(2.0)


def _load_prctl() -> Callable[[int, int], int] | None:
    try:
        return ctypes.CDLL(None).prctl
    except (AttributeError, OSError):
        return None


_prctl = _load_prctl()  # before any fork


def _die_with_parent() -> None:
    """In the child: a SIGKILL of `wvl` itself must not leave nodes behind."""
    if _prctl is not None:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def stop(children: Sequence[Child], hurry: Callable[[], int]) -> None:
    """Ends children: SIGTERM, after a deadline once more, then SIGKILL. A rise of `hurry()` (Ctrl-C again) ends a wait.

    To our nodes SIGTERM says the same as SIGINT, but Python dies of SIGINT with a traceback while it is still starting.
    """
    steps = ((signal.SIGTERM, CLOSING_SECONDS), (signal.SIGTERM, HURRY_SECONDS), (signal.SIGKILL, 1.0))
    for number, seconds in steps:
        alive = [child for child in children if child.code is None]
        if not alive:
            break
        for child in alive:
            child.send(number)
        pressed, deadline = hurry(), time.monotonic() + seconds
        while time.monotonic() < deadline and hurry() == pressed and any(child.code is None for child in alive):
            time.sleep(POLL_SECONDS)
