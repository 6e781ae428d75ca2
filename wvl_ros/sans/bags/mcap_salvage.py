"""Reads what there is of an MCAP file that was cut off or lost its index, and writes it anew."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import IO, NamedTuple

from lz4.frame import LZ4FrameDecompressor  # type: ignore[import-untyped]
from mcap.data_stream import ReadDataStream
from mcap.reader import make_reader
from mcap.records import Channel, Schema
from mcap.writer import CompressionType, Writer
from zstandard import ZstdDecompressor, ZstdError

MAGIC = b"\x89MCAP0\r\n"
LARGEST = 1 << 30  # bytes of a record; what claims to be longer is damage
_HEAD = struct.Struct("<BQ")  # opcode and length of a record
_MESSAGE = struct.Struct("<HIQQ")  # channel, sequence, log time, publish time
_SCHEMA, _CHANNEL, _MESSAGE_CODE, _CHUNK, _DATA_END = 3, 4, 5, 6, 15
_BLOCK = 1 << 14
_COMPRESSIONS = {"lz4": CompressionType.LZ4, "zstd": CompressionType.ZSTD}


class Message(NamedTuple):
    """A message with its channel; times in ns."""

    channel: Channel
    log_time: int
    publish_time: int
    sequence: int
    data: bytes


@dataclass
class Salvage:
    """What was found in a file. `cut`: whether it broke off before its end."""

    messages: int = 0
    cut: bool = True
    compression: str = ""
    schemas: dict[int, Schema] = field(default_factory=dict)
    channels: dict[int, Channel] = field(default_factory=dict)


def is_whole(path: Path) -> bool:
    """Whether an MCAP file has its end, with an index of all messages."""
    try:
        with path.open("rb") as file:
            summary = make_reader(file).get_summary()
    except Exception:  # the mcap package raises whatever a damaged record leads to
        return False
    if summary is None or summary.statistics is None:
        return False
    statistics = summary.statistics
    return statistics.message_count == 0 or len(summary.chunk_indexes) == statistics.chunk_count > 0


def salvage(path: Path, target: Path, look: Callable[[str, str, bytes], None]) -> Salvage:
    """Copies every whole message of a damaged MCAP file to a new one with an index.

    Args:
        look: called with topic, type and data of each message.
    """
    found = Salvage()
    with path.open("rb") as file, target.open("wb") as out:
        messages = _messages(file, found)
        message = next(messages, None)  # only now it is known how the file was compressed
        writer = Writer(out, compression=_COMPRESSIONS.get(found.compression, CompressionType.NONE))
        writer.start(profile="ros2", library="wvl bag repair")
        schemas: dict[int, int] = {0: 0}  # number in the old file -> in the new one
        channels: dict[int, int] = {}
        while message is not None:
            channel = message.channel
            schema = found.schemas.get(channel.schema_id)
            if channel.id not in channels:
                if schema and schema.id not in schemas:
                    schemas[schema.id] = writer.register_schema(schema.name, schema.encoding, schema.data)
                channels[channel.id] = writer.register_channel(
                    channel.topic, channel.message_encoding, schemas.get(channel.schema_id, 0), channel.metadata
                )
            look(channel.topic, schema.name if schema else "", message.data)
            writer.add_message(
                channels[channel.id], message.log_time, message.data, message.publish_time, message.sequence
            )
            found.messages += 1
            message = next(messages, None)
        writer.finish()
    return found


def _messages(file: IO[bytes], found: Salvage) -> Iterator[Message]:
    """The messages of a file, in or outside of chunks, up to where it breaks off."""
    if file.read(len(MAGIC)) != MAGIC:
        return
    while len(head := file.read(_HEAD.size)) == _HEAD.size:
        code, length = _HEAD.unpack(head)
        if code == _DATA_END:
            found.cut = False
        if code in (0, _DATA_END) or length > LARGEST:
            return
        data = file.read(length)
        if code == _CHUNK:
            yield from _chunk(data, found)
        elif len(data) == length:
            yield from _record(code, data, found)


def _chunk(data: bytes, found: Salvage) -> Iterator[Message]:
    """The messages of a chunk, which may be cut off."""
    if len(data) < 40:
        return
    (size,) = struct.unpack_from("<I", data, 28)
    found.compression = compression = data[32 : 32 + size].decode("ascii", "replace")
    content = memoryview(data)[40 + size :]
    inner = memoryview(_decompress(content, compression)) if compression else content
    position = 0
    while position + _HEAD.size <= len(inner):
        code, length = _HEAD.unpack_from(inner, position)
        start, end = position + _HEAD.size, position + _HEAD.size + length
        if code == 0 or end > len(inner):
            return
        yield from _record(code, inner[start:end], found)
        position = end


def _record(code: int, data: bytes | memoryview, found: Salvage) -> Iterator[Message]:
    if code == _SCHEMA:
        schema = Schema.read(ReadDataStream(BytesIO(data)))
        found.schemas[schema.id] = schema
    elif code == _CHANNEL:
        channel = Channel.read(ReadDataStream(BytesIO(data)))
        found.channels[channel.id] = channel
    elif code == _MESSAGE_CODE and len(data) >= _MESSAGE.size:
        number, sequence, log_time, publish_time = _MESSAGE.unpack_from(data)
        if number in found.channels:
            yield Message(found.channels[number], log_time, publish_time, sequence, bytes(data[_MESSAGE.size :]))


def _decompress(data: memoryview, compression: str) -> bytes:
    """As much as can be decompressed, nothing of an unknown compression."""
    if compression not in _COMPRESSIONS:
        return b""
    decompressor = ZstdDecompressor().decompressobj() if compression == "zstd" else LZ4FrameDecompressor()
    blocks = []
    try:
        for start in range(0, len(data), _BLOCK):
            blocks.append(decompressor.decompress(bytes(data[start : start + _BLOCK])))
    except (RuntimeError, ValueError, EOFError, ZstdError):
        pass  # what comes after the damage cannot be had
    return b"".join(blocks)
