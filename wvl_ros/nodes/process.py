"""The life of a node's process: start, spin, a clean end on SIGINT or SIGTERM at any moment, and its exit code.

Exit codes: 0 after a signal or when the node is done, 1 when a peer died or something broke, 2 for refused input.
This module is light: ROS and the node are imported when the signal handlers are in place.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import traceback
from importlib import import_module
from types import FrameType
from typing import Any

from wvl_ros.errors import WvlError

SPIN_PERIOD = 0.1  # s between looks at the signal flag


class StopSignal:
    """Set by the first SIGINT or SIGTERM. While nothing is running yet, the signal ends the process at once."""

    def __init__(self) -> None:
        self.received = False
        self.starting = True
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.received = True
        if self.starting:
            raise SystemExit(0)


def run(module: str, name: str, **settings: Any) -> None:
    """Makes the node class `name` of `module`, spins it here until it is done or a signal comes, and exits."""
    stop = StopSignal()
    code = 1
    try:
        code = _spin(stop, module, name, settings)
    except WvlError as error:
        print(error, file=sys.stderr)
        code = 2
    except Exception:  # the last resort: the process must end with a code, whatever broke
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads of torch, MuJoCo or DDS that are still busy must not turn a clean end into a crash or a wait.
    os._exit(code)


def _spin(stop: StopSignal, module: str, name: str, settings: dict[str, Any]) -> int:
    import rclpy
    from rclpy.executors import SingleThreadedExecutor
    from rclpy.signals import SignalHandlerOptions

    node_class = getattr(import_module(module), name)
    stop.starting = False
    if stop.received:
        return 0
    # rclpy's own handlers would shut the context down before the node could say that its episode is aborted.
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    node = node_class(**settings)
    handler = RosLogHandler(node.get_logger())
    logging.getLogger("wvl_ros").addHandler(handler)
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    try:
        while not stop.received and not node.done:
            executor.spin_once(timeout_sec=SPIN_PERIOD)
        node.close()
    finally:
        logging.getLogger("wvl_ros").removeHandler(handler)
        executor.shutdown(timeout_sec=1.0)
        node.destroy_node()
        rclpy.try_shutdown()
    return 0 if stop.received else int(node.exit_code)


class RosLogHandler(logging.Handler):
    """Passes what this package logs (Python's logging) on to a node's logger."""

    def __init__(self, logger: Any) -> None:
        super().__init__(logging.INFO)
        self._logger = logger

    def emit(self, record: logging.LogRecord) -> None:
        """Logs one record at the level it has."""
        text = record.getMessage()
        if record.levelno >= logging.ERROR:  # one call a level: rclpy ties a level to the place it is called from
            self._logger.error(text)
        elif record.levelno >= logging.WARNING:
            self._logger.warning(text)
        else:
            self._logger.info(text)
