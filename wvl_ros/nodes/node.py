"""What the nodes of this package share: an end, calls from worker threads, and a watch over their peers."""

from __future__ import annotations

import queue
from collections.abc import Callable
from typing import Any

from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.node import Node
from rclpy.task import Future


class WvlNode(Node):
    """A node that ends on its own when `done` is true, with `exit_code`, and can be called from other threads."""

    def __init__(self, name: str, **settings: Any) -> None:
        super().__init__(name, **settings)
        self.done = False
        self.exit_code = 0
        self.linger = 0.0  # s that it goes on after a signal
        self.wall = Clock(clock_type=ClockType.STEADY_TIME)  # timers must not stop with the simulated time
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._wake = self.create_guard_condition(self.run_calls)

    def call(self, function: Callable[[], None]) -> None:
        """Has the spinning thread call a function soon; from any thread."""
        self._calls.put(function)
        self._wake.trigger()

    def call_with(self, function: Callable[..., None], *arguments: Any) -> None:
        """`call` for a function with arguments."""
        self.call(lambda: function(*arguments))

    def awaitable(self, future: Any) -> Future:
        """An rclpy future that the spinning thread completes when a worker's future is done.

        A callback that awaits it needs a callback group in which others may go on.
        """
        waiting: Future = Future()

        def hand_over(done: Any) -> None:
            error = done.exception()
            self.call(lambda: waiting.set_exception(error) if error else waiting.set_result(done.result()))

        future.add_done_callback(hand_over)
        return waiting

    def fail(self, sentence: str, exit_code: int) -> None:
        """Says what went wrong and ends the node; from the spinning thread."""
        self.get_logger().fatal(sentence)
        self.exit_code, self.done = exit_code, True

    def close(self) -> None:
        """Ends what the node does; called once, by the spinning thread, while publishing still works."""

    def run_calls(self) -> None:
        """Runs what other threads asked for; from the spinning thread."""
        while not self._calls.empty():
            self._calls.get()()


class Peer:
    """Whether somebody alive publishes on a topic, told by DDS liveliness: also a killed process is noticed, after
    its lease.

    Args:
        here, gone: called in the spinning thread when the first publisher comes and when the last one goes.
    """

    def __init__(self, here: Callable[[], None] = lambda: None, gone: Callable[[], None] = lambda: None) -> None:
        self.alive = 0
        self._here, self._gone = here, gone

    def events(self) -> SubscriptionEventCallbacks:
        """For `create_subscription(event_callbacks=...)`; the subscription must ask for a lease (`qos.LEASE`)."""
        return SubscriptionEventCallbacks(liveliness=self._changed)

    def _changed(self, status: Any) -> None:
        before, self.alive = self.alive, int(status.alive_count)
        if not before and self.alive:
            self._here()
        elif before and not self.alive:
            self._gone()
