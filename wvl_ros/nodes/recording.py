"""The recorder's own thread: sorts serialised messages into one bag an episode. Without rclpy."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from wvl_ros.sans.bag_writer import EpisodeRecording, RecordingReport, message_stamp
from wvl_ros.sans.topics import ABORTED, FINISHED, TOPICS, message_types

LINGER = 1.0  # s that a bag waits for the last messages of its episode
REFERENCE_LINGER = 4.0  # s that it waits for the second world to come as far
KEPT = 400  # messages kept from before an episode is known, two dozen steps


class EpisodeRecorder(threading.Thread):
    """Writes a bag for each episode that appears on `<namespace>/reward`, and closes it when the episode has ended.

    Args:
        out: folder of recordings. namespace: of the world. reference: of a second world to record beside it, '' for
        none.
        closed: called in this thread with each closed bag.
        failed: called in this thread when nothing can be written any more.
    """

    def __init__(
        self,
        out: Path,
        namespace: str,
        reference: str,
        closed: Callable[[RecordingReport, str], None],
        failed: Callable[[Exception], None],
    ) -> None:
        super().__init__(name="recorder", daemon=True)
        self._out, self._namespace, self._reference = out, namespace.rstrip("/"), reference.rstrip("/")
        self._closed, self._failed = closed, failed
        self._queue: queue.SimpleQueue[tuple[str, bytes] | str | None] = queue.SimpleQueue()
        self._kept: deque[tuple[str, int, bytes]] = deque(maxlen=KEPT)
        self._recording: EpisodeRecording | None = None
        self._ended_at = 0.0
        self._last_step = 0
        self._reference_id, self._reference_step = "", -1
        self._reward = f"{self._namespace}/reward"
        self._status = f"{self._namespace}/episode_status"
        self._types = message_types()

    def put(self, topic: str, data: bytes) -> None:
        """Takes one serialised message."""
        self._queue.put((topic, data))

    def world_gone(self) -> None:
        """Says that the world will send no more: a bag that is open is closed as aborted."""
        self._queue.put("gone")

    def close(self, timeout: float) -> None:
        """Closes an open bag (as aborted unless its episode had ended) and ends the thread."""
        self._queue.put(None)
        self.join(timeout)

    def run(self) -> None:
        """Serves the queue until `close`."""
        try:
            while True:
                wait = LINGER if self._recording is None else 0.1
                try:
                    item = self._queue.get(timeout=wait)
                except queue.Empty:
                    self._close_if_due()
                    continue
                if item is None or isinstance(item, str):
                    self._finish("the recorder was stopped" if item is None else "the world node is gone")
                    if item is None:
                        return
                else:
                    self._take(item[0], message_stamp(item[1]), item[1])
                    self._close_if_due()
        except Exception as error:  # a full disk, for instance: nobody else sees it
            if self._recording is not None:
                self._recording.discard()
            self._failed(error)

    def _take(self, topic: str, stamp: int, data: bytes) -> None:
        recording = self._recording
        if self._reference and topic == f"{self._reference}/reward":
            self._follow(self._decode("reward", data))
        if topic == self._reward:
            episode_id = self._decode("reward", data).episode_id
            if recording is None or episode_id != recording.episode_id:
                self._finish("the next episode began")
                recording = self._open(episode_id, stamp)
        if recording is None or not recording.write(topic, stamp, data):
            self._kept.append((topic, stamp, data))
        elif topic == self._status:
            status = self._decode("episode_status", data)
            if status.state in (FINISHED, ABORTED) and status.episode_id == recording.episode_id:
                recording.end(stamp, status.step, status.outcome)
                self._ended_at, self._last_step = time.monotonic(), status.step

    def _open(self, episode_id: str, stamp: int) -> EpisodeRecording:
        self._recording = EpisodeRecording(self._out, episode_id, self._namespace, stamp, self._reference)
        kept = list(self._kept)
        self._kept.clear()
        for topic, other, data in kept:
            if other >= stamp or topic.startswith(f"{self._reference}/"):
                self._take(topic, other, data)
        return self._recording

    def _close_if_due(self) -> None:
        recording = self._recording
        if recording is not None and recording.ended:
            waited = time.monotonic() - self._ended_at
            complete = recording.complete and (not self._reference or self._reference_step >= self._last_step)
            if complete or waited > (REFERENCE_LINGER if self._reference else LINGER):
                self._finish("")

    def _follow(self, reward: Any) -> None:
        """Keeps track of how far the second world is in the episode that it began last."""
        if reward.step == 0:
            self._reference_id = reward.episode_id
        if reward.episode_id == self._reference_id:
            self._reference_step = reward.step

    def _finish(self, reason: str) -> None:
        if self._recording is not None:
            recording, self._recording = self._recording, None
            self._reference_id, self._reference_step = "", -1
            self._closed(recording.close(), "" if recording.ended else reason)

    def _decode(self, name: str, data: bytes) -> Any:
        return self._types.deserialize_cdr(data, TOPICS[name])
