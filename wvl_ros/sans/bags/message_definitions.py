"""Definitions of message types that are installed beside this package, for topics that it does not know by name."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from rosbags.typesys import get_types_from_msg
from rosbags.typesys.base import TypesysError

from wvl_ros.sans.bags.topics import message_types

_STAMPED = ("std_msgs/msg/Header", "builtin_interfaces/msg/Time")  # as the first field


def find_definition(kind: str) -> bool:
    """Whether `message_types()` has a message type, after a look at the installed packages (`share/<package>/msg`).

    Args:
        kind: for instance 'franka_msgs/msg/FrankaRobotState'.
    """
    store = message_types()
    if kind in store.fielddefs:
        return True
    found: dict[str, Any] = {}
    wanted = [kind]
    while wanted:
        name = wanted.pop()
        if name in store.fielddefs or name in found:
            continue
        file = _definition_file(name)
        if file is None:
            return False
        try:
            types = get_types_from_msg(file.read_text(encoding="utf-8"), name)
        except (OSError, TypesysError, UnicodeDecodeError):
            return False
        found |= types
        wanted += [other for _, fields in types.values() for _, field in fields for other in _names(field)]
    store.register(found)
    return True


def is_stamped(kind: str) -> bool:
    """Whether messages of a known type begin with a header or a time."""
    fields = message_types().fielddefs[kind][1]
    return bool(fields) and any(name in _STAMPED for name in _names(fields[0][1], arrays=False))


def _definition_file(kind: str) -> Path | None:
    package, _, name = kind.partition("/msg/")
    prefixes = [*filter(None, os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep)), sys.prefix]
    files = [Path(prefix, "share", package, "msg", f"{name}.msg") for prefix in prefixes]
    return next((file for file in files if file.is_file()), None) if name else None


def _names(field: Any, arrays: bool = True) -> list[str]:
    """Message types in a description: (Nodetype.NAME, name), or (array or sequence, ((Nodetype, name), size))."""
    kind, value = field
    if kind.name == "NAME":
        return [value]
    if kind.name in ("ARRAY", "SEQUENCE") and arrays:
        return _names(value[0])
    return []
