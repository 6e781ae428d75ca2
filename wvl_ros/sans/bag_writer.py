"""Writes one episode to one rosbag2 folder (MCAP) from serialised messages, without ROS.

The messages of several topics arrive in any order between them. An `EpisodeRecording` takes what belongs to its
episode (by the stamp in each message, which is also the bag time), and knows when all of it is there.
"""

from __future__ import annotations

import os
import shutil
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from rosbags.interfaces import Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime
from rosbags.rosbag2 import StoragePlugin, Writer

from wvl_ros.sans.topics import IMAGES, STEP_TOPICS, TOPICS, message_types

_FOREVER = QosTime(9223372036, 854775807)  # how rosbag2 writes an infinite duration


@dataclass(frozen=True)
class RecordingReport:
    """What a closed recording holds: its folder, its messages and the images that its steps call for but it lacks."""

    episode_id: str
    folder: Path
    outcome: str
    messages: int
    missing: int

    @property
    def bag(self) -> Path:
        """The rosbag2 folder."""
        return self.folder / "bag"


class EpisodeRecording:
    """One episode's bag while it is being written: `<out>/.<episode_id>.part/bag`, renamed to `<out>/<episode_id>` at
    the end.

    Args:
        out: folder of recordings.
        episode_id: the episode's name and folder.
        namespace: of the world, for instance '/imagined'; topics are recorded below it.
        reference: a second namespace whose per-step topics are recorded as well, '' for none.
        first_stamp: ns, the stamp of step 0; older messages belong to former episodes.
    """

    def __init__(self, out: Path, episode_id: str, namespace: str, first_stamp: int, reference: str = "") -> None:
        self.episode_id = episode_id
        self.outcome = ""
        self._folder = out / episode_id
        self._part = out / f".{episode_id}.{os.getpid()}.part"
        self._first = first_stamp
        self._last: int | None = None
        self._steps = 0
        self._seen: dict[str, int] = {}
        self._count: Counter[str] = Counter()
        self._namespace = namespace.rstrip("/")
        self._writer = Writer(self._part / "bag", version=9, storage_plugin=StoragePlugin.MCAP)
        self._writer.open()
        topics = {f"{self._namespace}/{name}": kind for name, kind in TOPICS.items()}
        if reference:
            topics |= {f"{reference.rstrip('/')}/{name}": TOPICS[name] for name in (*STEP_TOPICS, "episode_status")}
        self._connections = {
            topic: self._writer.add_connection(
                topic, kind, typestore=message_types(), offered_qos_profiles=[_qos(topic)]
            )
            for topic, kind in topics.items()
        }
        self._step_topics = {topic for topic in topics if topic.startswith(f"{self._namespace}/")} & {
            f"{self._namespace}/{name}" for name in STEP_TOPICS
        }
        self._images = [f"{self._namespace}/{name}" for name in IMAGES]

    def write(self, topic: str, stamp: int, data: bytes) -> bool:
        """Adds one serialised message; False when it belongs to another episode (too early, or after the end)."""
        own = topic.startswith(f"{self._namespace}/")
        if own and (stamp < self._first or (self._last is not None and stamp > self._last)):
            return False
        if topic in self._step_topics:
            if stamp <= self._seen.get(topic, -1):  # published again for a late subscriber
                return True
            self._seen[topic] = stamp
        self._writer.write(self._connections[topic], stamp, data)
        self._count[topic] += 1
        return True

    def end(self, stamp: int, step: int, outcome: str) -> None:
        """Says that the episode ended with the observation of `stamp` (ns) at `step`; later messages are refused."""
        self._last, self._steps, self.outcome = stamp, step + 1, outcome

    @property
    def ended(self) -> bool:
        """Whether `end` was called."""
        return self._last is not None

    @property
    def complete(self) -> bool:
        """Whether the episode ended and every per-step topic has come up to its end."""
        last = self._last
        return last is not None and all(self._seen.get(topic, -1) >= last for topic in self._step_topics)

    def close(self) -> RecordingReport:
        """Finishes the bag and gives the folder its name. An episode that never ended is marked 'aborted'."""
        outcome = self.outcome or "aborted"
        steps = self._steps or max((self._count[topic] for topic in self._step_topics), default=0)
        for key, value in {"episode_id": self.episode_id, "outcome": outcome, "namespace": self._namespace}.items():
            self._writer.set_custom_data(key, value)
        messages = sum(self._count.values())
        self._writer.close()
        folder, number = self._folder, 1
        while folder.exists():
            number += 1
            folder = self._folder.with_name(f"{self._folder.name}-{number}")
        self._part.rename(folder)
        missing = sum(max(0, steps - self._count[topic]) for topic in self._images)
        return RecordingReport(self.episode_id, folder, outcome, messages, missing)

    def discard(self) -> None:
        """Throws away what was written."""
        self._writer.abort()
        shutil.rmtree(self._part, ignore_errors=True)


def message_stamp(data: bytes) -> int:
    """Stamp in ns of a serialised message that starts with a header or a time."""
    order = "<" if data[1] & 1 else ">"
    seconds, nanoseconds = struct.unpack_from(f"{order}iI", data, 4)
    return int(seconds) * 1_000_000_000 + int(nanoseconds)


def _qos(topic: str) -> Qos:
    """What the publishers offer, so that `ros2 bag play` offers the same."""
    name = topic.rsplit("/", 1)[-1]
    status = name == "episode_status"
    live = status or name == "action_chunk"
    return Qos(
        history=QosHistory.KEEP_LAST,
        depth=50,
        reliability=QosReliability.RELIABLE,
        durability=QosDurability.TRANSIENT_LOCAL if status else QosDurability.VOLATILE,
        deadline=_FOREVER,
        lifespan=_FOREVER,
        liveliness=QosLiveliness.AUTOMATIC,
        liveliness_lease_duration=QosTime(2, 0) if live else _FOREVER,
        avoid_ros_namespace_conventions=False,
    )
