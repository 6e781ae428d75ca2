"""`wvl up`: a graph without launch_ros. The runner has the terminal; the others log to files and only warnings show."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from wvl_ros.commands.processes import POLL_SECONDS, Child, command, ros_arguments, stop
from wvl_ros.errors import ConfigError
from wvl_ros.graphs import GRAPHS, Graph, Node, parse_assignments, share
from wvl_ros.shared_memory import free_leftovers

NOTICE_SECONDS = 8.0  # for the others to notice a dead peer (a lease of 2 s), to say so and to close the episode


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The graph's arguments, written name:=value as for `ros2 launch`."""
    graph = GRAPHS[parser.get_default("command")[-1]]
    parser.add_argument("arguments", nargs="*", metavar="name:=value", help="see below")
    parser.epilog = "\n".join(["arguments:", *(_describe(argument) for argument in graph.arguments)])


def _describe(argument: Any) -> str:
    choices = f" One of: {', '.join(argument.choices)}." if argument.choices else ""
    return f"  {argument.name}:={argument.text}\n      {argument.description}{choices}"


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Starts the graph, waits for its end and stops what is left.

    Returns:
        `exit_code` (that of the runner; 1 after the death of a node; 128 + signal after Ctrl-C or SIGTERM), `message`,
        `graph`, `arguments`, `log` (folder), `nodes` (exit codes) and `recordings` (new folders).

    Raises:
        WvlError: an argument that cannot be, or a node of a package that is not installed.
    """
    graph = GRAPHS[args.command[-1]]
    given = parse_assignments(args.arguments)
    values, nodes = graph.values(given), graph.nodes(given)
    out = Path(str(values["out"]))
    before = _folders(out)
    log = _log_folder(graph)
    free_leftovers()
    with _terminal() as keyboard, _signals() as received, _started(graph, nodes, log, args.json, keyboard) as children:
        code, message = _watch(graph, children, received)
        _stop_in_order(graph, children, received)
    if received:
        code, message = 128 + received[0], f"stopped by {signal.Signals(received[0]).name}."
    return {
        "exit_code": code,
        "message": message,
        "graph": graph.name,
        "arguments": values,
        "log": str(log),
        "nodes": {child.name: child.code for child in children},
        "recordings": sorted(str(folder) for folder in _folders(out) - before),
    }


def show(result: dict[str, Any]) -> None:
    """Only what the runner has not said."""
    if result["exit_code"] > 128:
        print(f"wvl: {result['message']}", file=sys.stderr)
    if result["exit_code"]:
        print(f"wvl: the logs are in {result['log']}", file=sys.stderr)


def _folders(out: Path) -> set[Path]:
    return {path for path in out.glob("[!.]*") if path.is_dir()}


def _log_folder(graph: Graph) -> Path:
    home = os.environ.get("ROS_HOME") or Path("~/.ros").expanduser()
    base = Path(os.environ.get("ROS_LOG_DIR") or Path(home) / "log")
    folder = base / f"{time.strftime('%Y-%m-%d-%H-%M-%S')}-wvl-up-{graph.name}-{os.getpid()}"
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(
            f"No logs can be written to {folder} ({error.strerror}): set ROS_LOG_DIR to a folder."
        ) from error
    return folder


@contextlib.contextmanager
def _terminal() -> Iterator[bool]:
    """Whether there is a terminal whose keys are meant for us (not in the background); left as it was found."""
    try:
        keyboard = sys.stdin.isatty() and os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
        before = termios.tcgetattr(sys.stdin.fileno()) if keyboard else None
    except (OSError, ValueError, AttributeError, termios.error):  # no stdin at all
        keyboard, before = False, None
    try:
        yield keyboard
    finally:
        if before is not None:  # the runner puts it back itself, unless it was killed
            with contextlib.suppress(OSError, termios.error):
                termios.tcsetattr(sys.stdin.fileno(), termios.TCSADRAIN, before)


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """The signals to stop that have come so far."""
    received: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        received.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _started(graph: Graph, nodes: list[Node], log: Path, quiet: bool, keyboard: bool) -> Iterator[list[Child]]:
    """The children; none of them outlives the block."""
    config = share() / "config"
    env = os.environ | {"PYTHONUNBUFFERED": "1", "RCUTILS_COLORIZED_OUTPUT": "0"}
    env.setdefault("FASTDDS_DEFAULT_PROFILES_FILE", str(config / "shm.xml"))
    programs = [command(node) for node in nodes]  # all of them before the first starts: one may be missing
    children: list[Child] = []
    try:
        for node, program in zip(nodes, programs, strict=True):
            words = program + ros_arguments(node, config / f"{graph.name}.yaml", log)
            runs = node.executable == graph.runner
            # With --json stdout is for the result alone.
            stdout = sys.stderr if runs and quiet else None
            path = None if runs else log / f"{node.namespace.strip('/').replace('/', '.')}.{node.name}.log"
            children.append(Child(node, words, env, path, _report, stdout, keyboard=runs and keyboard))
        for child in children:
            child.read()
        yield children
    finally:
        for child in children:
            child.finish()


def _report(line: str) -> None:
    clear = "\r\x1b[K" if sys.stderr.isatty() else ""  # the runner's live line
    print(f"{clear}{line}", file=sys.stderr, flush=True)


def _watch(graph: Graph, children: list[Child], received: list[int]) -> tuple[int, str]:
    """Waits for the end: the exit code and how it came about."""
    optional = {child for child in children if not child.node.required}
    while not received:
        for child in children:
            if child.code is None:
                continue
            if child in optional:
                optional.discard(child)
                _report(f"wvl: {child.ending()}; the others go on.")
            elif child.node.executable == graph.runner:
                return _runner_code(child.code), f"{child.ending()}."
            elif child.node.required:
                _report(f"wvl: {child.ending()}; stopping the others.")
                _await_notice(graph, children, received)
                return 2 if child.code == 2 else 1, f"{child.ending()}."
        time.sleep(POLL_SECONDS)
    return 128 + received[0], ""


def _runner_code(code: int) -> int:
    return code if code in (0, 2) else 1


def _await_notice(graph: Graph, children: list[Child], received: list[int]) -> None:
    deadline = time.monotonic() + NOTICE_SECONDS
    runners = [child for child in children if child.node.executable == graph.runner]
    while time.monotonic() < deadline and not received and any(child.code is None for child in runners):
        time.sleep(POLL_SECONDS)


def _stop_in_order(graph: Graph, children: list[Child], received: list[int]) -> None:
    """The runner first, so that it cancels; the recorder last, so that the bag holds the end."""
    last = [child for child in children if child.node.executable == "recorder"]
    first = [child for child in children if child.node.executable == graph.runner]
    rest = [child for child in children if child not in first + last]
    for group in (first, rest, last):
        stop(group, lambda: len(received))
