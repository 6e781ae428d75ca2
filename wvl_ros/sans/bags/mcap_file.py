"""Reads MCAP files record by record, touching only the bytes that are asked for.

One walk over the records gives the stamp and place of every message. Image data in uncompressed chunks are stepped
over and read later, by their place, when the conversion has chosen them. Works with and without chunks, index and
summary. The format: https://mcap.dev/spec.
"""

from __future__ import annotations

import io
import os
import struct
import threading
import zlib
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from mcap.data_stream import ReadDataStream
from mcap.opcode import Opcode
from mcap.records import Channel, Schema, Statistics

MAGIC = b"\x89MCAP0\r\n"
HEAD = 32  # bytes of a message that are read with its stamp
MAX_CHUNK = 256 << 20
MAX_MESSAGE = 256 << 20
_MAX_FACT = 16 << 20  # a schema's or channel's record
_WINDOW = 1 << 16
_CACHE = 64 << 20

Read = Callable[[int, int], bytes]


class Place(NamedTuple):
    """Where a message's data lie: in the file (chunk -1), or in the decompressed chunk that starts at `chunk`."""

    chunk: int
    offset: int
    length: int


class Found(NamedTuple):
    """A message that a scan met: its topic, bag time in ns, place, and its data or only their first bytes."""

    topic: str
    time: int
    place: Any
    data: bytes


@dataclass(frozen=True)
class Topic:
    """A topic of a bag: name, message type, whether it has messages, the type's hash ('' unknown), serialisation."""

    name: str
    type: str
    used: bool = True
    digest: str = ""
    encoding: str = "cdr"


class McapFile:
    """One .mcap file.

    Raises:
        ValueError, OSError, ...: damaged (see `damage.reading`).
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._size = os.fstat(self._file.fileno()).st_size
        self._window = (0, b"")
        self._lock = threading.Lock()
        self._chunks: OrderedDict[int, bytes] = OrderedDict()
        self._channels: dict[int, Topic] = {}
        self._schemas: dict[int, str] = {}
        try:
            self._check()
            self._end, self._counts = self._summary()
        except BaseException:
            self.close()
            raise

    def topics(self) -> dict[str, Topic]:
        """By name; from the summary, or by a walk over the file where there is none."""
        if self._counts is None:
            seen: Counter[str] = Counter(found.topic for found in self.scan({}))
            used = set(seen)
        else:
            used = {topic.name for number, topic in self._channels.items() if self._counts.get(number)}
        rows = {topic.name: topic for topic in self._channels.values()}
        return {name: Topic(name, t.type, name in used, t.digest, t.encoding) for name, t in rows.items()}

    def scan(self, whole: Mapping[str, bool]) -> Iterator[Found]:
        """Every message in the file's order; all its data where `whole[topic]`, its first bytes where that is False.

        With an empty `whole`, all messages without data.
        """
        seen: Counter[int] = Counter()
        for chunk, read, start, length in self._messages():
            number, _, time, _ = struct.unpack("<HIQQ", read(start, 22))
            seen[number] += 1
            if number not in self._channels:
                raise ValueError(f"a message belongs to channel {number}, which is nowhere declared")
            topic = self._channels[number].name
            place = Place(chunk, start + 22, length - 22)
            if not whole:
                yield Found(topic, time, place, b"")
            elif topic in whole:
                size = place.length if whole[topic] else min(HEAD, place.length)
                yield Found(topic, time, place, read(place.offset, size))
        if self._counts is not None and (lost := sum(self._counts.values()) - sum(seen.values())) > 0:
            raise ValueError(f"{lost} of the messages that its summary lists are not there")

    def read(self, place: Place) -> bytes:
        """A message's data. Threads may read at the same time."""
        if place.chunk < 0:
            return self._pread(place.offset, place.length)
        return self._chunk(place.chunk)[place.offset : place.offset + place.length]

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
        self._chunks.clear()

    def _check(self) -> None:
        if self._size == 0:
            raise ValueError("the file is empty")
        if self._pread(0, min(8, self._size)) != MAGIC:
            raise ValueError("the file does not begin like an MCAP file")
        if self._size < 45 or self._pread(self._size - 8, 8) != MAGIC:
            raise ValueError("the file stops in the middle, as when the recorder was killed or a copy is not complete")

    def _summary(self) -> tuple[int, dict[int, int] | None]:
        """Where the data end, and each channel's number of messages where the file says so."""
        footer = self._size - 8 - 29
        opcode, length, start = struct.unpack("<BQQ", self._pread(footer, 17))
        if opcode != Opcode.FOOTER or length != 20 or (start and not 8 <= start <= footer):
            raise ValueError("the file's last record is not a footer")
        if not start:
            return footer, None
        counts = None
        for code, content, size in self._records(self._near, start, footer):
            if code == Opcode.STATISTICS:
                counts = dict(Statistics.read(self._stream(self._near, content, size)).channel_message_counts)
            else:
                self._declare(code, self._near, content, size)
        return start, counts

    def _messages(self) -> Iterator[tuple[int, Read, int, int]]:
        """Chunk (-1 for none), how to read there, where a message record's content starts and how long it is."""
        for code, start, length in self._records(self._near, 8, self._end):
            if code == Opcode.DATA_END:
                return
            if code == Opcode.MESSAGE:
                yield -1, self._near, start, _message_length(length)
            elif code == Opcode.CHUNK:
                yield from self._chunk_messages(start, length)
            else:
                self._declare(code, self._near, start, length)

    def _chunk_messages(self, at: int, length: int) -> Iterator[tuple[int, Read, int, int]]:
        compression, crc, size, start, stored = self._chunk_header(at, length)
        if compression:
            data = self._chunk(at)
            chunk, read, start, end = at, _reader(data), 0, len(data)
        else:
            chunk, read, end = -1, self._near, start + stored
            if stored != size:
                raise ValueError("a chunk's length contradicts itself")
            if crc and self._crc(start, stored) != crc:
                raise ValueError(f"the checksum of the chunk at byte {at} does not fit its data")
        for code, content, amount in self._records(read, start, end):
            if code == Opcode.MESSAGE:
                yield chunk, read, content, _message_length(amount)
            else:
                self._declare(code, read, content, amount)

    def _chunk_header(self, at: int, length: int) -> tuple[str, int, int, int, int]:
        """Compression, checksum, size, and where the stored data start and how many bytes they are."""
        _, _, size, crc, name_length = struct.unpack("<QQQII", self._near(at, 32))
        if name_length > 16 or length < 40 + name_length:
            raise ValueError(f"the chunk at byte {at} has no header")
        compression = self._near(at + 32, name_length).decode()
        (stored,) = struct.unpack("<Q", self._near(at + 32 + name_length, 8))
        if stored > length - 40 - name_length:
            raise ValueError(f"the chunk at byte {at} claims more bytes than its record has")
        return compression, crc, size, at + 40 + name_length, stored

    def _chunk(self, at: int) -> bytes:
        """A decompressed chunk, from the few that are kept."""
        with self._lock:
            if at in self._chunks:
                self._chunks.move_to_end(at)
                return self._chunks[at]
        _, length = struct.unpack("<BQ", self._pread(at - 9, 9))
        compression, crc, size, start, stored = self._chunk_header_at(at, length)
        data = decompress(compression, self._pread(start, stored), size)
        if crc and zlib.crc32(data) != crc:
            raise ValueError(f"the checksum of the chunk at byte {at} does not fit its data")
        with self._lock:
            self._chunks[at] = data
            while len(self._chunks) > 1 and sum(map(len, self._chunks.values())) > _CACHE:
                self._chunks.popitem(last=False)
        return data

    def _chunk_header_at(self, at: int, length: int) -> tuple[str, int, int, int, int]:
        with self._lock:  # the window belongs to one thread at a time
            return self._chunk_header(at, length)

    def _records(self, read: Read, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Opcode of each record, where its content starts and how long it is."""
        while start < end:
            if end - start < 9:
                raise ValueError(f"{end - start} bytes at byte {start} are no record")
            code, length = struct.unpack("<BQ", read(start, 9))
            if length > end - start - 9:
                raise ValueError(f"the record at byte {start} claims {length} bytes where {end - start - 9} are left")
            yield code, start + 9, length
            start += 9 + length

    def _declare(self, code: int, read: Read, start: int, length: int) -> None:
        """Takes note of a schema or a channel; leaves other records alone."""
        if code == Opcode.SCHEMA:
            schema = Schema.read(self._stream(read, start, length))
            self._schemas[schema.id] = schema.name
        elif code == Opcode.CHANNEL:
            channel = Channel.read(self._stream(read, start, length))
            kind = self._schemas.get(channel.schema_id, "")
            digest = channel.metadata.get("topic_type_hash", "")
            self._channels[channel.id] = Topic(channel.topic, kind, True, digest, channel.message_encoding)

    def _stream(self, read: Read, start: int, length: int) -> ReadDataStream:
        if length > _MAX_FACT:
            raise ValueError(f"the record at byte {start} claims {length} bytes")
        return ReadDataStream(io.BytesIO(read(start, length)))

    def _near(self, offset: int, size: int) -> bytes:
        """Bytes of the file through a window, as records follow each other closely."""
        first, data = self._window
        if not first <= offset <= offset + size <= first + len(data):
            if size > _WINDOW // 4:
                return self._pread(offset, size)
            first, data = offset, os.pread(self._file.fileno(), _WINDOW, offset)
            self._window = first, data
        part = data[offset - first : offset - first + size]
        if len(part) != size:
            raise ValueError(f"the file ends before byte {offset + size}")
        return part

    def _pread(self, offset: int, size: int) -> bytes:
        if size > self._size:
            raise ValueError(f"{size} bytes at byte {offset} are more than the file has")
        data = os.pread(self._file.fileno(), size, offset)
        if len(data) != size:
            raise ValueError(f"the file ends before byte {offset + size}")
        return data

    def _crc(self, start: int, length: int) -> int:
        value = 0
        for offset in range(start, start + length, 1 << 20):
            value = zlib.crc32(self._pread(offset, min(1 << 20, start + length - offset)), value)
        return value


def decompress(compression: str, data: bytes, size: int) -> bytes:
    """`data` decompressed to `size` bytes.

    Raises:
        ValueError: an unknown compression, an absurd size, or another size comes out.
    """
    if compression not in ("zstd", "lz4"):
        raise ValueError(f"chunks of compression '{compression}' cannot be read")
    if size > MAX_CHUNK:
        raise ValueError(f"a chunk claims {size} bytes; at most {MAX_CHUNK} are read")
    with pa.CompressedInputStream(pa.BufferReader(data), compression) as stream:
        out = bytes(stream.read(size))
    if len(out) != size:
        raise ValueError(f"a chunk has {len(out)} bytes where {size} were promised")
    return out


def _message_length(length: int) -> int:
    if not 22 <= length <= MAX_MESSAGE:
        raise ValueError(f"a message record claims {length} bytes")
    return length


def _reader(data: bytes) -> Read:
    def read(offset: int, size: int) -> bytes:
        part = data[offset : offset + size]
        if len(part) != size:
            raise ValueError("a record reaches beyond its chunk")
        return part

    return read
