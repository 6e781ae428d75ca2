"""The life of a node's process: start, spin, a clean end on SIGINT or SIGTERM at any moment, and its exit code.

Exit codes: 0 after a signal or when the node is done, 1 when a peer died or something broke, 2 for refused input.
This module imports next to nothing: all else comes when the signal handlers are in place.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from types import FrameType

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
            os._exit(0)  # an exception in the middle of an import of compiled code would be printed


def run(module: str, name: str, **settings: object) -> None:
    """Makes the node class `name` of `module`, spins it here until it is done or a signal comes, and exits."""
    stop = StopSignal()
    # One thread a node unless the user says otherwise: torch's threads spin while they wait for each other, and where
    # several nodes share a few cores a frame then takes ten times as long.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from wvl_ros.errors import WvlError

    code = 1
    try:
        code = _spin(stop, module, name, settings)
    except WvlError as error:
        print(error, file=sys.stderr)
        code = 2
    except Exception:  # the last resort: the process must end with a code, whatever broke
        sys.excepthook(*sys.exc_info())
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads of torch, MuJoCo or DDS that are still busy must not turn a clean end into a crash or a wait.
    os._exit(code)


def _spin(stop: StopSignal, module: str, name: str, settings: dict[str, object]) -> int:
    from importlib import import_module

    import rclpy
    from rclpy.executors import SingleThreadedExecutor
    from rclpy.signals import SignalHandlerOptions

    from wvl_ros.nodes.logs import pass_on_logs

    node_class = getattr(import_module(module), name)
    stop.starting = False
    if stop.received:
        return 0
    # rclpy's own handlers would shut the context down before the node could say that its episode is aborted.
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    node = node_class(**settings)
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    try:
        with pass_on_logs(node.get_logger()):
            while not stop.received and not node.done:
                executor.spin_once(timeout_sec=SPIN_PERIOD)
            until = time.monotonic() + node.linger
            while stop.received and time.monotonic() < until:
                executor.spin_once(timeout_sec=SPIN_PERIOD)
            node.close()
    finally:
        executor.shutdown(timeout_sec=1.0)
        node.destroy_node()
        rclpy.try_shutdown()
    return 0 if stop.received else int(node.exit_code)
