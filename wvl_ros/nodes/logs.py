"""Python's logging of this package, passed on to ROS."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def pass_on_logs(logger: Any) -> Iterator[None]:
    """Within it, what `wvl_ros` logs from INFO up goes to a node's logger."""
    handler, package = RosLogHandler(logger), logging.getLogger("wvl_ros")
    package.addHandler(handler)
    try:
        yield
    finally:
        package.removeHandler(handler)


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
