"""Renders recordings one after another in a process of its own, so that neither recording nor control waits for it."""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import sys
import threading
from collections.abc import Callable

from wvl_ros.sans.bags.recording import RecordingReport

NICENESS = "5"
Rendered = Callable[[RecordingReport, str, str, str], None]


class Renderer(threading.Thread):
    """Runs `wvl render` for each recording.

    Args:
        rendered: called in this thread with the recording, the video, the contact sheet, and why there are none.
    """

    def __init__(self, rendered: Rendered) -> None:
        super().__init__(name="renderer", daemon=True)
        self._rendered = rendered
        self._queue: queue.SimpleQueue[RecordingReport | None] = queue.SimpleQueue()
        self._process: subprocess.Popen[str] | None = None
        self._closing = False

    def put(self, recording: RecordingReport) -> None:
        """Adds a recording."""
        self._queue.put(recording)

    def run(self) -> None:
        """Serves the queue until `close`."""
        while not self._closing and (recording := self._queue.get()) is not None:
            self._rendered(recording, *self._render(recording))

    def close(self) -> None:
        """Gives up what is not rendered yet (`wvl render` can do it later)."""
        self._closing = True
        self._queue.put(None)
        process = self._process
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        if self.is_alive():
            self.join(2.0)

    def _render(self, recording: RecordingReport) -> tuple[str, str, str]:
        # A session of its own: Ctrl-C in the terminal reaches the nodes, which decide about their children.
        command = ["nice", "-n", NICENESS, sys.executable, "-m", "wvl_ros.cli", "render", "--json", str(recording.bag)]
        self._process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        output, errors = self._process.communicate()
        if self._process.returncode:
            why = "it was stopped" if self._closing else (errors.strip().splitlines() or ["no reason given"])[-1]
            return "", "", f"{recording.folder} was not rendered: {why}"
        result = json.loads(output)
        return result["video"], result["contact_sheet"], ""
