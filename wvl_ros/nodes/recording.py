"""The recorder's own thread: sorts serialised messages into one bag an episode. Without rclpy."""

from __future__ import annotations

import queue
import shutil
import threading
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from wvl_ros.errors import BagError, EpisodeError, WvlError
from wvl_ros.nodes.kept_messages import KeptMessage, KeptMessages
from wvl_ros.sans.bags.label import check_label, label_bag
from wvl_ros.sans.bags.recording import EpisodeRecording, RecordedTopic, RecordingReport, message_stamp
from wvl_ros.sans.bags.topics import ABORTED, FINISHED, TOPICS, message_types

SETTLE = 0.1  # s that a complete bag waits for topics that do not come once a step
LINGER = 1.0  # s that a bag waits for the last messages of its episode
REFERENCE_LINGER = 4.0  # s that it waits for the second world to come as far
FLUSH = 0.5  # s between two flushes: a killed recorder loses no more than that and what is in its queue
STOP_GRACE = 2.0  # s that the world has to end an episode that cannot be recorded any more
WARN = 10.0  # s between two warnings of the same kind
BACKLOG = 1 << 30  # bytes of messages that may wait for a slow disk


@dataclass(frozen=True)
class RecorderSettings:
    """Where and what to record.

    Attributes:
        out: folder of recordings. namespace: of the world. reference: of a second world to record beside it, or ''.
        min_free: bytes that must be free on the disk. facts: further entries for custom_data of each bag.
    """

    out: Path
    namespace: str
    reference: str = ""
    min_free: int = 0
    facts: Mapping[str, str] = field(default_factory=dict)


class Listener(Protocol):
    """Whom the recorder tells what happens. Called in its thread."""

    def began(self, episode_id: str) -> None:
        """A bag was opened."""

    def closed(self, report: RecordingReport, complaint: str) -> None:
        """A bag was closed; `complaint`: why its episode is marked aborted although the world did not say so."""

    def labelled(self, report: RecordingReport) -> None:
        """A closed bag has another outcome now."""

    def broke_off(self, episode_id: str, sentence: str) -> None:
        """There will be no bag of an episode; what it holds, if anything, is left for `wvl bag repair`."""

    def stop_episode(self, sentence: str) -> None:
        """The world should abort its episode, because it cannot be recorded."""

    def warn(self, sentence: str) -> None:
        """Something is odd."""

    def failed(self, error: Exception) -> None:
        """Nothing can be recorded any more."""


class Arrival(NamedTuple):
    """A serialised message; `received` in ns of the wall clock."""

    topic: str
    data: bytes
    received: int


class LabelRequest(NamedTuple):
    """Somebody says how an episode went; `answer` yields a sentence or holds a WvlError."""

    episode_id: str
    outcome: str
    source: str
    answer: Future[str]


class EpisodeRecorder(threading.Thread):
    """Writes a bag for each episode that appears on `<namespace>/reward`, and closes it when the episode has ended.

    Args:
        topics: all that may arrive; may grow later.
    """

    def __init__(self, settings: RecorderSettings, topics: Mapping[str, RecordedTopic], listener: Listener) -> None:
        super().__init__(name="recorder", daemon=True)
        self._settings, self._topics, self._listener = settings, topics, listener
        self._reference = settings.reference.rstrip("/")
        namespace = settings.namespace.rstrip("/")
        self._reward, self._status = f"{namespace}/reward", f"{namespace}/episode_status"
        self._clock_topic = f"{namespace}/clock"
        self._queue: queue.SimpleQueue[Arrival | LabelRequest | Callable[[], None]] = queue.SimpleQueue()
        self._waiting = [0, 0]  # bytes put by the other thread, bytes taken by this one
        self._kept = KeptMessages()
        self._recording: EpisodeRecording | None = None
        self._former: dict[str, int] = {}  # episodes that are over -> stamp of their first step
        self._reports: dict[str, RecordingReport] = {}
        self._published: Collection[str] | None = None
        self._clock = 0  # simulated time in ns, 0 when there is none
        self._ended_at = self._checked_at = self._stop_at = 0.0
        self._last_step = 0
        self._reference_id, self._reference_step = "", -1
        self._warned: dict[str, float] = {}
        self._closing = False
        self._types = message_types()

    # -- called by the spinning thread ---------------------------------------------------------------------------------

    def put(self, topic: str, data: bytes) -> None:
        """Takes one serialised message."""
        self._waiting[0] += len(data)
        self._queue.put(Arrival(topic, data, time.time_ns()))

    def world_gone(self) -> None:
        """Says that the world will send no more: a bag that is open is closed as aborted."""
        self._queue.put(lambda: self._finish("the world node is gone"))

    def publishing(self, topics: Collection[str]) -> None:
        """Says which topics have a publisher: a bag does not wait for others."""
        self._queue.put(lambda: self._set_published(topics))

    def label(self, episode_id: str, outcome: str, source: str) -> Future[str]:
        """Labels an episode ('': the one that is being recorded, else the last one); yields a sentence."""
        request = LabelRequest(episode_id, outcome, source or "operator", Future())
        self._queue.put(request)
        return request.answer

    def close(self, timeout: float) -> None:
        """Closes an open bag (as aborted unless its episode had ended) and ends the thread."""
        self._queue.put(self._end)
        self.join(timeout)

    # -- this thread ---------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serves the queue until `close`."""
        while not self._closing:
            try:
                self._serve()
            except OSError as error:  # a full disk, for instance
                self._break_off(error)
            except Exception as error:  # nobody else sees what breaks in this thread
                self._closing = True
                if self._recording is not None:
                    self._recording.abandon()
                self._listener.failed(error)

    def _serve(self) -> None:
        try:
            item = self._queue.get(timeout=LINGER if self._recording is None else 0.1)
        except queue.Empty:
            pass
        else:
            if isinstance(item, Arrival):
                self._waiting[1] += len(item.data)
                self._take(item)
            elif isinstance(item, LabelRequest):
                self._label(item)
            else:
                item()
        if self._recording is not None:
            self._close_if_due()
            self._check()

    def _end(self) -> None:
        self._closing = True
        self._finish("the recorder was stopped")

    def _set_published(self, topics: Collection[str]) -> None:
        self._published = topics
        if self._recording is not None:
            self._recording.published = topics

    # -- messages ------------------------------------------------------------------------------------------------------

    def _take(self, item: Arrival) -> None:
        topic, data, received = item
        about = self._topics[topic]
        stamp = message_stamp(data) if about.stamped else 0
        if about.latched:
            self._kept.latch(topic, data)
        elif stamp and self._kept.jumped_back(topic, stamp):
            self._warn("jump", f"The clock of '{topic}' jumped back.")
        if not stamp:  # nobody says when it was, so it was now
            stamp = self._clock or received
        if topic == self._clock_topic:
            self._clock = stamp
        if self._reference and topic == f"{self._reference}/reward":
            self._follow(self._decode("reward", data))
        elif topic == self._reward:
            self._sort(self._decode("reward", data), stamp, received)
        self._write(KeptMessage(topic, stamp, data, about.stamped and not about.latched, received))

    def _write(self, message: KeptMessage) -> None:
        recording, topic, stamp, data = self._recording, message.topic, message.stamp, message.data
        late = not message.stamped and time.monotonic() - self._ended_at > SETTLE
        if recording is None or (recording.ended and late):
            self._keep(message)
            return
        taken = recording.write(topic, stamp, data, anyway=not message.stamped)
        if not taken:
            self._keep(message)
        elif topic == self._status:
            status = self._decode("episode_status", data)
            if status.state in (FINISHED, ABORTED) and status.episode_id == recording.episode_id:
                recording.end(stamp, status.step, status.outcome)
                if status.state == ABORTED:
                    recording.reason = recording.reason or status.message
                self._ended_at, self._last_step = time.monotonic(), status.step

    def _keep(self, message: KeptMessage) -> None:
        if not self._topics[message.topic].latched:  # these are kept already
            self._kept.add(message)

    def _sort(self, reward: Any, stamp: int, received: int) -> None:
        """Begins a bag with each new episode. A reward of an episode that is over can only come from a second world."""
        recording, episode_id, first = self._recording, reward.episode_id, reward.step == 0
        if recording is not None and episode_id == recording.episode_id:
            if first and stamp != recording.first_stamp:
                self._finish("its episode began again")
                self._open(episode_id, stamp, received)
        elif episode_id in self._former and not (first and stamp != self._former[episode_id]):
            if recording is not None and not recording.ended:
                name = self._settings.namespace
                self._warn(
                    "worlds",
                    f"Two worlds publish in '{name}': episode {episode_id} goes on beside {recording.episode_id}; "
                    "give each a namespace of its own.",
                )
                self._finish(f"two worlds publish in '{name}'")
        else:
            self._finish("the next episode began")
            self._open(episode_id, stamp, received)

    def _open(self, episode_id: str, stamp: int, received: int) -> None:
        settings = self._settings
        if len(self._former) > 10_000:
            self._former.clear()
        self._former[episode_id] = stamp
        shortage = self._shortage()
        if shortage:
            sentence = f"Episode {episode_id} is not recorded: {shortage}. Make room in '{settings.out}'."
            self._listener.stop_episode(sentence)
            self._listener.broke_off(episode_id, sentence)
            return
        self._recording = recording = EpisodeRecording(
            settings.out, episode_id, settings.namespace, stamp, self._reference, settings.facts, self._topics
        )
        recording.published = self._published
        self._checked_at, self._stop_at = time.monotonic(), 0.0
        for topic, data in self._kept.latched():
            recording.write(topic, stamp, data, anyway=True)
        for message in self._kept.take():
            beside = self._reference and message.topic.startswith(f"{self._reference}/")
            if message.stamped and (message.stamp >= stamp or beside):
                self._write(message)
            elif not message.stamped and received - message.received < SETTLE * 1e9:
                self._write(message._replace(stamp=max(stamp, message.stamp)))
        self._listener.began(episode_id)

    def _warn(self, what: str, sentence: str) -> None:
        now = time.monotonic()
        if now - self._warned.get(what, -WARN) >= WARN:
            self._warned[what] = now
            self._listener.warn(sentence)

    def _follow(self, reward: Any) -> None:
        """Keeps track of how far the second world is in the episode that it began last."""
        if reward.step == 0:
            self._reference_id = reward.episode_id
        if reward.episode_id == self._reference_id:
            self._reference_step = reward.step

    def _decode(self, name: str, data: bytes) -> Any:
        return self._types.deserialize_cdr(data, TOPICS[name])

    # -- the end of a bag ----------------------------------------------------------------------------------------------

    def _close_if_due(self) -> None:
        recording = self._recording
        if recording is not None and recording.ended:
            waited = time.monotonic() - self._ended_at
            complete = recording.complete and (not self._reference or self._reference_step >= self._last_step)
            if (complete and waited > SETTLE) or waited > (REFERENCE_LINGER if self._reference else LINGER):
                self._finish("")

    def _finish(self, reason: str) -> None:
        recording = self._recording
        if recording is None:
            return
        complaint = "" if recording.ended else recording.reason or reason
        recording.reason = recording.reason or complaint
        report = recording.close()
        self._recording = None
        self._reference_id, self._reference_step = "", -1
        self._reports[report.episode_id] = report
        self._listener.closed(report, complaint)

    def _check(self) -> None:
        """Twice a second: what was written leaves this process, and there must be room for more."""
        now = time.monotonic()
        recording = self._recording
        if recording is None or now - self._checked_at < FLUSH:
            return
        self._checked_at = now
        recording.flush()
        if recording.ended:
            return
        if self._stop_at:
            if now > self._stop_at:
                self._finish(recording.reason)
            return
        shortage = self._shortage()
        waiting = self._waiting[0] - self._waiting[1]
        if waiting > BACKLOG:
            shortage = f"the disk is too slow, {waiting >> 20} MB of messages wait for it"
        if shortage:
            recording.reason = shortage
            self._stop_at = now + STOP_GRACE
            self._listener.stop_episode(f"Episode {recording.episode_id} is stopped: {shortage}.")

    def _shortage(self) -> str:
        free, least = shutil.disk_usage(self._settings.out).free, self._settings.min_free
        if free >= least:
            return ""
        return f"the disk is nearly full, {free / 1e6:.0f} MB are free where min_free_mb is {least / 1e6:.0f}"

    def _break_off(self, error: OSError) -> None:
        """The disk does not take any more. What it has stays, and the next episode is tried afresh."""
        recording, self._recording = self._recording, None
        if recording is None:
            self._listener.stop_episode(f"No bag can be written to '{self._settings.out}': {error.strerror or error}.")
            return
        part = recording.abandon()
        sentence = (
            f"Episode {recording.episode_id} is no longer recorded: {error.strerror or error}. What was written stays"
            f" in '{part}'; make room, then run `wvl bag repair {part}`."
        )
        self._listener.stop_episode(sentence)
        self._listener.broke_off(recording.episode_id, sentence)

    # -- labels --------------------------------------------------------------------------------------------------------

    def _label(self, request: LabelRequest) -> None:
        try:
            request.answer.set_result(self._labelled(request))
        except WvlError as error:
            request.answer.set_exception(error)
        except OSError as error:
            request.answer.set_exception(BagError(f"The label cannot be written: {error.strerror or error}."))

    def _labelled(self, request: LabelRequest) -> str:
        episode_id, outcome, source, _ = request
        check_label(outcome, source)
        recording = self._recording
        if recording is not None and episode_id in ("", recording.episode_id):
            recording.label(outcome, source)
            return f"Episode {recording.episode_id} will be '{outcome}'."
        episode_id = episode_id or next(reversed(self._reports), "")
        if not episode_id:
            raise EpisodeError("No episode has been recorded yet; name one.")
        report = self._reports.get(episode_id)
        folder = report.folder if report else self._settings.out / episode_id
        if Path(episode_id).name != episode_id or not folder.is_dir():
            raise EpisodeError(f"There is no recording of episode '{episode_id}' in '{self._settings.out}'.")
        label_bag(folder / "bag", outcome, source)
        if report is not None:
            self._reports[episode_id] = replace(report, outcome=outcome, outcome_source=source)
            self._listener.labelled(self._reports[episode_id])
        return f"Episode {episode_id} is '{outcome}' now."
