"""A bag as streams: which topics it has, when each message came, and the messages that are asked for.

A bag is a rosbag2 folder (MCAP or sqlite3; whole files, single messages or chunks compressed; split into several
files) or a bare .mcap or .db3 file.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from types import TracebackType
from typing import Any, BinaryIO, Protocol, cast

import numpy as np
import pyarrow as pa
import yaml
from numpy.typing import NDArray

from wvl_ros.errors import BagError
from wvl_ros.sans.bags.damage import reading
from wvl_ros.sans.bags.mcap_file import HEAD, MAX_MESSAGE, McapFile, Topic
from wvl_ros.sans.bags.sqlite_file import SqliteFile

METADATA = "metadata.yaml"
SUFFIXES = (".mcap", ".db3")
_MAX_METADATA = 16 << 20


class _Storage(Protocol):
    def topics(self) -> dict[str, Topic]: ...
    def scan(self, whole: Mapping[str, bool]) -> Any: ...
    def read(self, place: Any) -> bytes: ...
    def close(self) -> None: ...


@dataclass
class Stream:
    """The messages of a topic in the order of recording.

    Attributes:
        type: of the messages.
        time: int64 (N,) ns, when they were recorded.
        place: N places for `Bag.read`.
        data: N serialised messages, or their first bytes where only stamps were asked for.
    """

    topic: str
    type: str
    time: NDArray[np.int64]
    place: list[Any] = field(default_factory=list)
    data: list[bytes] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.place)


class Bag:
    """An open bag; use it in a `with` statement.

    Attributes:
        topics: those with messages, by name.
        custom_data: what the recorder noted in metadata.yaml.

    Raises:
        BagError: no bag, damaged, or of a kind that cannot be read.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._stack = ExitStack()
        self._storages: list[_Storage] = []
        self._by_message = False
        self.custom_data: dict[str, str] = {}
        self.topics: dict[str, Topic] = {}
        try:
            with reading(self.path):
                self._open()
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> Bag:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def scan(self, whole: Mapping[str, bool]) -> dict[str, Stream]:
        """The streams of the named topics in one pass; with all their data where `whole[topic]`, else first bytes.

        Raises:
            BagError: damaged.
        """
        times: dict[str, list[int]] = {topic: [] for topic in whole}
        streams = {topic: Stream(topic, self.topics[topic].type, np.empty(0, np.int64)) for topic in whole}
        with reading(self.path):
            for number, storage in enumerate(self._storages):
                for topic, time, place, data in storage.scan(whole):
                    stream = streams[topic]
                    times[topic].append(time)
                    stream.place.append((number, place))
                    stream.data.append(self._unpack(data, None if whole[topic] else HEAD, (number, place)))
            for topic, stream in streams.items():
                stream.time = np.array(times[topic], np.int64)
        return streams

    def read(self, place: tuple[int, Any]) -> bytes:
        """One serialised message; several threads may read at once.

        Raises:
            BagError: damaged.
        """
        with reading(self.path):
            number, inner = place
            return self._unpack(self._storages[number].read(inner), None, place)

    def _unpack(self, data: bytes, size: int | None, place: tuple[int, Any]) -> bytes:
        """Undoes message compression; only the first `size` bytes where that is given."""
        if not self._by_message:
            return data
        if size is not None:  # a compressed message's first bytes do not come from its first bytes alone
            data = self._storages[place[0]].read(place[1])
        limit = MAX_MESSAGE if size is None else size
        with pa.CompressedInputStream(pa.BufferReader(data), "zstd") as stream:
            parts, left = [], limit
            while left and (part := stream.read(min(left, 1 << 22))):
                parts.append(bytes(part))
                left -= len(part)
        if size is None and not left:
            raise ValueError(f"a message has more than {MAX_MESSAGE} bytes")
        return b"".join(parts)

    def _open(self) -> None:
        if self.path.is_file():
            paths, info = [self.path], {}
            if self.path.suffix not in SUFFIXES:
                raise BagError(f"'{self.path}' is no bag; give a folder with {METADATA}, a .mcap or a .db3 file.")
        else:
            info = read_metadata(self.path)
            self.custom_data = {str(k): str(v) for k, v in (info.get("custom_data") or {}).items()}
            names = info["relative_file_paths"]
            if not isinstance(names, list) or not names:
                raise ValueError(f"{METADATA} names no files")
            paths = [self.path / PurePath(str(name)).name for name in names]
        mode = str(info.get("compression_mode") or "").lower()
        if mode not in ("", "none") and info.get("compression_format") != "zstd":
            raise ValueError(f"compression '{info.get('compression_format')}' is not supported, only zstd")
        self._by_message = mode == "message"
        for path in paths:
            self._storages.append(self._storage(self._unpack_file(path) if mode == "file" else path))
        hashes = _hashes(info)
        for storage in self._storages:
            for name, topic in storage.topics().items():
                if topic.used:
                    digest = hashes.get(name) or topic.digest
                    self.topics[name] = Topic(name, topic.type, True, digest, topic.encoding)
        if not self.topics:
            raise BagError(f"The bag '{self.path}' is empty: it holds no messages.")

    def _storage(self, path: Path) -> _Storage:
        if path.suffix not in SUFFIXES:
            raise ValueError(f"'{path.name}' is neither .mcap nor .db3")
        storage: _Storage = McapFile(path) if path.suffix == ".mcap" else SqliteFile(path)
        self._stack.callback(storage.close)
        return storage

    def _unpack_file(self, path: Path) -> Path:
        """The decompressed file in a temporary folder, which goes with the bag."""
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="wvl-bag-")))
        out = folder / path.stem
        room = shutil.disk_usage(folder).free // 2
        with pa.input_stream(str(path), compression="zstd") as source, out.open("wb") as target:
            while part := source.read(1 << 22):
                room -= len(part)
                if room < 0:
                    raise ValueError(f"'{path.name}' needs more than half of the space left in '{folder.parent}'")
                cast(BinaryIO, target).write(part)
        return out


def read_metadata(folder: Path) -> dict[str, Any]:
    """The `rosbag2_bagfile_information` of a bag's metadata.yaml.

    Raises:
        BagError: there is none. Others: damaged (see `damage.reading`).
    """
    path = folder / METADATA
    if not path.is_file():
        raise BagError(
            f"'{folder}' is not a bag: it has no {METADATA}; if its recorder was killed, run `wvl bag repair`."
        )
    with path.open(encoding="utf-8") as file:
        text = file.read(_MAX_METADATA)
    info = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))["rosbag2_bagfile_information"]
    if not isinstance(info, dict):
        raise ValueError(f"{METADATA} is no description of a bag")
    return info


def _hashes(info: Mapping[str, Any]) -> dict[str, str]:
    topics = [row["topic_metadata"] for row in info.get("topics_with_message_count") or []]
    return {str(topic["name"]): str(topic.get("type_description_hash") or "") for topic in topics}
