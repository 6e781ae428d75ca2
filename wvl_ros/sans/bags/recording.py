"""Writes one episode to one rosbag2 folder (MCAP) from serialised messages, without ROS.

The messages of several topics arrive in any order between them. An `EpisodeRecording` takes what belongs to its
episode (by the stamp in each message, which is also the bag time), and knows when all of it is there.
"""

from __future__ import annotations

import contextlib
import shutil
import struct
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from rosbags.interfaces import Connection, Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime
from rosbags.rosbag2 import StoragePlugin

from wvl_ros.sans.bags.mcap_writer import BagWriter
from wvl_ros.sans.bags.part_folder import FACTS, PartFolder
from wvl_ros.sans.bags.topics import STEP_TOPICS, TOPICS, message_types
from wvl_ros.worlds.droid import CAMERAS

FOREVER = QosTime(9223372036, 854775807)  # how rosbag2 writes an infinite duration
COMPRESSED = tuple(f"{camera}/image_raw/compressed" for camera in CAMERAS)
NO_FACTS: Mapping[str, str] = {}


@dataclass(frozen=True)
class RecordedTopic:
    """A topic that is recorded.

    Attributes:
        name: absolute. kind: for instance 'sensor_msgs/msg/Image'. qos: what its publishers offer.
        stamped: whether its messages begin with a stamp; else their bag time is that of their receipt.
        latched: whether a message is in force until the next one, so that each bag begins with it.
    """

    name: str
    kind: str
    qos: Qos
    stamped: bool = True
    latched: bool = False


@dataclass(frozen=True)
class RecordingReport:
    """What a closed recording holds: its folder, its messages and the images that its steps call for but it lacks.

    Attributes:
        outcome_source: 'world', 'operator', ..., or '' when nobody judged it. reason: why it was aborted.
    """

    episode_id: str
    folder: Path
    outcome: str
    messages: int
    missing: int
    outcome_source: str = ""
    reason: str = ""

    @property
    def bag(self) -> Path:
        """The rosbag2 folder."""
        return self.folder / "bag"


class EpisodeRecording:
    """One episode's bag while it is being written: `<out>/.<episode_id>.<pid>.part/bag`, renamed to
    `<out>/<episode_id>` at the end.

    Args:
        out: folder of recordings.
        episode_id: the episode's name and folder.
        namespace: of the world, for instance '/imagined'; topics are recorded below it.
        reference: a second namespace whose per-step topics are recorded as well, '' for none.
        first_stamp: ns, the stamp of step 0; older messages belong to former episodes.
        facts: further entries for the bag's custom_data: policy, world_model, iteration.
        topics: all topics that may come, by name; may grow later. By default the known ones of `TOPICS`.
    """

    def __init__(
        self,
        out: Path,
        episode_id: str,
        namespace: str,
        first_stamp: int,
        reference: str = "",
        facts: Mapping[str, str] = NO_FACTS,
        topics: Mapping[str, RecordedTopic] | None = None,
    ) -> None:
        self.episode_id = episode_id
        self.first_stamp = first_stamp
        self.outcome, self.outcome_source, self.reason = "", "", ""
        self.published: Collection[str] | None = None  # topics known to have a publisher, None for not known
        self._out = out
        self._namespace = namespace.rstrip("/")
        self._facts = dict.fromkeys(FACTS, "") | {"iteration": "0"} | dict(facts)
        self._facts |= {"episode_id": episode_id, "namespace": self._namespace}
        self._last: int | None = None
        self._steps = 0
        self._seen: dict[str, int] = {}
        self._count: Counter[str] = Counter()
        self._foreign = f"{reference.rstrip('/')}/" if reference else ""
        self._topics = known_topics(namespace, reference) if topics is None else topics
        self._step_topics = {f"{self._namespace}/{name}" for name in (*STEP_TOPICS, *COMPRESSED)}
        self._connections: dict[str, Connection] = {}
        self._part = PartFolder.create(out, episode_id, self._facts)
        self._writer = BagWriter(self._part.bag, version=9, storage_plugin=StoragePlugin.MCAP)
        try:
            self._writer.open()
        except OSError:
            self._part.release()
            raise

    def write(self, topic: str, stamp: int, data: bytes, *, anyway: bool = False) -> bool:
        """Adds one serialised message; False when it belongs to another episode (too early, or after the end).

        Args:
            stamp: ns. anyway: takes it whatever its stamp.
        """
        if not anyway and not (self._foreign and topic.startswith(self._foreign)):
            if self._last is not None and stamp > self._last:
                self._seen[topic] = stamp  # so it has come up to the end
                return False
            # DDS keeps a topic's order: what follows a message of the episode belongs to it, too.
            if stamp < self.first_stamp and topic not in self._count:
                return False
        if topic in self._step_topics:
            if stamp == self._seen.get(topic):  # published again for a late subscriber
                return True
            self._seen[topic] = stamp
        self._writer.write(self._connections.get(topic) or self._connect(topic), stamp, data)
        self._count[topic] += 1
        return True

    def _connect(self, topic: str) -> Connection:
        about = self._topics[topic]
        connection = self._writer.add_connection(
            topic, about.kind, typestore=message_types(), offered_qos_profiles=[about.qos]
        )
        self._connections[topic] = connection
        return connection

    def flush(self) -> None:
        """Hands all that was written to the operating system: from then on the end of this process loses none of it."""
        self._writer.flush()

    def end(self, stamp: int, step: int, outcome: str) -> None:
        """Says that the episode ended with the observation of `stamp` (ns) at `step`; later messages are refused.

        A label that was given before stays.
        """
        self._last, self._steps = stamp, step + 1
        if not self.outcome_source:
            self.outcome = outcome
            self.outcome_source = "world" if outcome not in ("", "aborted") else ""

    def label(self, outcome: str, source: str) -> None:
        """Says how the episode went, or goes, whatever the world will say."""
        self.outcome, self.outcome_source = outcome, source
        self._part.note({"outcome": outcome, "outcome_source": source})

    @property
    def ended(self) -> bool:
        """Whether `end` was called."""
        return self._last is not None

    @property
    def complete(self) -> bool:
        """Whether the episode ended and every per-step topic that it carries has come up to its end."""
        last = self._last
        return last is not None and all(self._seen.get(topic, -1) >= last for topic in self._carried())

    def _carried(self) -> set[str]:
        published = known_topics(self._namespace) if self.published is None else self.published
        return {topic for topic in self._step_topics if topic in published or self._count[topic]}

    def close(self) -> RecordingReport:
        """Finishes the bag and gives the folder its name. An episode that never ended is marked 'aborted'; one that
        ended without a word about how it went, '', is to be labelled.

        Raises:
            OSError: the disk is full, for instance; then `abandon` or `discard` it.
        """
        outcome = self.outcome or ("" if self.ended else "aborted")
        note = {"outcome": outcome, "outcome_source": self.outcome_source, "reason": self.reason}
        for key, value in (self._facts | note).items():
            self._writer.set_custom_data(key, value)
        messages = sum(self._count.values())
        self._writer.close()
        folder = self._part.finish(self._out, self.episode_id)
        return RecordingReport(
            self.episode_id, folder, outcome, messages, self._missing(), self.outcome_source, self.reason
        )

    def _missing(self) -> int:
        carried = self._carried()
        steps = self._steps or max((self._count[topic] for topic in self._step_topics), default=0)
        missing = 0
        for camera in CAMERAS:
            topics = {f"{self._namespace}/{camera}/{name}" for name in ("image_raw", "image_raw/compressed")} & carried
            if topics:
                missing += max(0, steps - max(self._count[topic] for topic in topics))
        return missing

    def abandon(self) -> Path:
        """Leaves what is written where it is, for `wvl bag repair`; returns that folder. Never raises."""
        with contextlib.suppress(OSError):
            self._writer.abort()
        self._part.release()
        return self._part.path

    def discard(self) -> None:
        """Throws away what was written."""
        shutil.rmtree(self.abandon(), ignore_errors=True)


def known_topics(namespace: str, reference: str = "") -> dict[str, RecordedTopic]:
    """The topics of `TOPICS` below a world's namespace, and those of each step below the reference's."""
    names = {f"{namespace.rstrip('/')}/{name}": kind for name, kind in TOPICS.items()}
    if reference:
        names |= {f"{reference.rstrip('/')}/{name}": TOPICS[name] for name in (*STEP_TOPICS, "episode_status")}
    return {topic: RecordedTopic(topic, kind, _offered(topic)) for topic, kind in names.items()}


def message_stamp(data: bytes) -> int:
    """Stamp in ns of a serialised message that starts with a header or a time."""
    order = "<" if data[1] & 1 else ">"
    seconds, nanoseconds = struct.unpack_from(f"{order}iI", data, 4)
    return int(seconds) * 1_000_000_000 + int(nanoseconds)


def make_qos(*, reliable: bool = True, latched: bool = False, lease: int = 0) -> Qos:
    """How publishers offer a topic, as a bag notes it, so that `ros2 bag play` offers the same. `lease`: s."""
    return Qos(
        history=QosHistory.KEEP_LAST,
        depth=50,
        reliability=QosReliability.RELIABLE if reliable else QosReliability.BEST_EFFORT,
        durability=QosDurability.TRANSIENT_LOCAL if latched else QosDurability.VOLATILE,
        deadline=FOREVER,
        lifespan=FOREVER,
        liveliness=QosLiveliness.AUTOMATIC,
        liveliness_lease_duration=QosTime(lease, 0) if lease else FOREVER,
        avoid_ros_namespace_conventions=False,
    )


def _offered(topic: str) -> Qos:
    name = topic.rsplit("/", 1)[-1]
    status = name == "episode_status"
    return make_qos(latched=status, lease=2 if status or name == "action_chunk" else 0)
