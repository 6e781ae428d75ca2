"""rosbags' MCAP writer without its copies of each message: images go from where they lie straight to the file."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from rosbags.interfaces import Connection
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.rosbag2.enums import CompressionMode
from rosbags.rosbag2.storage_mcap import McapWriter

from wvl_ros.sans.bags.direct_file import DirectFile

CHUNK = 1 << 22  # bytes of messages after which a chunk is closed
_MESSAGE = struct.Struct("<BQHIQQ")  # opcode, length, channel, sequence, log time, publish time
_CHUNK = struct.Struct("<BQQQQI")  # opcode, length, start, end, uncompressed size, no checksum
_UINT32, _UINT64 = struct.Struct("<I"), struct.Struct("<Q")
_NEVER = 2**63 - 1


class ChunkWriter(McapWriter):
    """Gathers the messages of a chunk as they are; they are copied only once, to the file's buffer. Uncompressed.

    rosbags' chunk holds the schemas and channels only, and the index of the messages.
    """

    def __init__(self, path: Path, compression: CompressionMode) -> None:
        super().__init__(path, compression)
        header = self._reopen()
        self.bio.write(header)
        self._pieces: list[bytes | memoryview] = []
        self._size = 0

    def _reopen(self) -> bytes:
        """Replaces the file that rosbags has begun; returns what was in it."""
        self.bio.close()
        header = self.path.read_bytes()
        self.path.unlink()
        self.bio: Any = DirectFile(self.path)
        return header

    @property
    def pending(self) -> bool:
        """Whether there are messages that are not in the file yet."""
        return bool(self._pieces)

    def write(self, connection: Connection, timestamp: int, data: bytes | memoryview) -> None:
        """Adds a message; `timestamp` in ns. `data` must not change until the chunk is closed."""
        chunk = self.chunk
        self._gather()
        chunk.message_start_time = min(timestamp, chunk.message_start_time)
        chunk.message_end_time = max(timestamp, chunk.message_end_time)
        self.message_start_time = min(timestamp, self.message_start_time)
        self.message_end_time = max(timestamp, self.message_end_time)
        self.channel_stats[connection.id] += 1
        chunk.msgs[connection.id].append((timestamp, self._size))
        self._add(_MESSAGE.pack(0x05, 22 + len(data), connection.id, 0, timestamp, timestamp))
        self._add(data)
        if self._size > CHUNK:
            self.close_chunk()

    def close_chunk(self) -> None:
        """Writes the chunk and its index."""
        self._gather()
        pieces, size, chunk = self._pieces, self._size, self.chunk
        offset = self.bio.tell()
        length = 40 + size
        head = _CHUNK.pack(0x06, length, chunk.message_start_time, chunk.message_end_time, size, 0)
        head += _UINT32.pack(0) + _UINT64.pack(size)  # no compression
        index = b""
        offsets = b""
        for channel, messages in chunk.msgs.items():
            offsets += struct.pack("<HQ", channel, offset + 9 + length + len(index))
            entries = b"".join(struct.pack("<QQ", *entry) for entry in messages)
            index += struct.pack("<BQHI", 0x07, 6 + len(entries), channel, len(entries)) + entries
        for piece in (head, *pieces, index):
            self.bio.write(piece)
        record = BytesIO()
        record.write(struct.pack("<QQQQ", chunk.message_start_time, chunk.message_end_time, offset, 9 + length))
        record.write(_UINT32.pack(len(offsets)) + offsets + _UINT64.pack(len(index)))
        record.write(_UINT32.pack(0) + _UINT64.pack(size) + _UINT64.pack(size))
        self.chunks.append(record)
        self._pieces, self._size = [], 0
        chunk.message_start_time, chunk.message_end_time = _NEVER, 0
        chunk.msgs.clear()

    def close(self, version: int, metadata: str) -> None:
        """Writes what is left, the metadata and the index, and closes the file."""
        if self.pending:
            self.close_chunk()
        super().close(version, metadata)

    def _gather(self) -> None:
        """New schemas and channels go before the messages that need them."""
        if self.chunk.bio.tell():
            self._add(self.chunk.bio.getvalue())
            self.chunk.bio = BytesIO()

    def _add(self, piece: bytes | memoryview) -> None:
        self._pieces.append(piece)
        self._size += len(piece)


class BagWriter(Writer):
    """rosbags' writer with this storage for MCAP."""

    STORAGE_PLUGINS: Mapping[StoragePlugin, Any] = {StoragePlugin.MCAP: ChunkWriter}

    def flush(self) -> None:
        """Hands all that was written to the operating system: the end of this process loses none of it any more."""
        assert isinstance(self.storage, ChunkWriter)
        if self.storage.pending:
            self.storage.close_chunk()
        self.storage.bio.flush()
