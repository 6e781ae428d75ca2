"""metadata.yaml of a rosbag2 folder, made from its storage files."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rosbags.interfaces import Connection, ConnectionExtRosbag2
from rosbags.rosbag2 import Reader, ReaderError
from rosbags.rosbag2.metadata import dump_qos_v9
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.base import TypesysError

from wvl_ros.errors import BagError

VERSION = 9
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"  # a CDR message begins with 00


def describe_files(files: Sequence[Path], custom_data: Mapping[str, str]) -> dict[str, Any]:
    """The content of metadata.yaml, as rosbag2 writes it.

    Args:
        files: whole .mcap or .db3 files of one bag, in order.

    Raises:
        BagError: one of them cannot be read.
    """
    topics: dict[tuple[str, str], dict[str, Any]] = {}
    parts: list[dict[str, Any]] = []
    packed = False
    for file in files:
        try:
            with Reader(file) as reader:
                count, start = reader.message_count, reader.start_time if reader.message_count else 0
                span = max(0, reader.end_time - 1 - start) if count else 0
                for connection in reader.connections:
                    known = topics.setdefault((connection.topic, connection.msgtype), _topic(connection))
                    known["message_count"] += connection.msgcount
                if count and not packed:
                    packed = next(iter(reader.messages(reader.connections)))[2][:4] == ZSTD_MAGIC
        except (ReaderError, OSError, ValueError, KeyError, TypeError, struct.error) as error:
            raise BagError(f"'{file}' cannot be read: {str(error).rstrip('.')}.") from error
        parts.append({"path": file.name, **_times(start, span), "message_count": count})
    filled = [part for part in parts if part["message_count"]]
    starts = [part["starting_time"]["nanoseconds_since_epoch"] for part in filled]
    ends = [start + part["duration"]["nanoseconds"] for start, part in zip(starts, filled, strict=True)]
    start = min(starts, default=0)
    return {
        "rosbag2_bagfile_information": {
            "version": VERSION,
            "storage_identifier": "mcap" if files[0].suffix == ".mcap" else "sqlite3",
            "relative_file_paths": [file.name for file in files],
            **_times(start, max(ends, default=0) - start),
            "message_count": sum(part["message_count"] for part in parts),
            "topics_with_message_count": list(topics.values()),
            "compression_format": "zstd" if packed else "",
            "compression_mode": "message" if packed else "",
            "files": parts,
            "custom_data": dict(custom_data) or None,
            "ros_distro": "rosbags",
        }
    }


def _times(start: int, span: int) -> dict[str, dict[str, int]]:
    return {"starting_time": {"nanoseconds_since_epoch": start}, "duration": {"nanoseconds": span}}


def _topic(connection: Connection) -> dict[str, Any]:
    assert isinstance(connection.ext, ConnectionExtRosbag2)
    about = {
        "name": connection.topic,
        "type": connection.msgtype,
        "serialization_format": connection.ext.serialization_format,
        "offered_qos_profiles": dump_qos_v9(connection.ext.offered_qos_profiles),
        "type_description_hash": connection.digest or _digest(connection),
    }
    return {"topic_metadata": about, "message_count": 0}


def _digest(connection: Connection) -> str:
    """The type's RIHS01 hash, from the definition in the file; '' where that is not possible."""
    store = get_typestore(Stores.EMPTY)
    try:
        store.register(get_types_from_msg(connection.msgdef.data, connection.msgtype))
        return str(store.hash_rihs01(connection.msgtype))
    except (TypesysError, KeyError, ValueError):
        return ""
