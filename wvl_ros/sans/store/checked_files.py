"""Files with checksums: SHA-256 of any file, and JSON that checks itself."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from wvl_ros.errors import DatasetError


def digest(data: bytes) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(data).hexdigest()


def digest_file(path: Path) -> str:
    """SHA-256 of a file in hex, streaming.

    Raises:
        DatasetError: it is missing or cannot be read.
    """
    try:
        with path.open("rb") as file:
            whole = hashlib.sha256()
            while block := file.read(1 << 20):
                whole.update(block)
            return whole.hexdigest()
    except OSError as error:
        raise unreadable(path, error) from error


def read_checked(root: Path, name: Path | str, sha256: str) -> bytes:
    """The bytes of a file that should have this checksum.

    Raises:
        DatasetError: it is missing, unreadable or changed.
    """
    path = root / name
    try:
        data = path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error
    if digest(data) != sha256:
        raise DatasetError(f"'{path}' is not what was written there (its checksum differs); copy it again.")
    return data


def unreadable(path: Path, error: OSError) -> DatasetError:
    """The error for a file that is missing or that the system cannot read."""
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return DatasetError(f"'{path}' is missing; copy the dataset again.")
    return DatasetError(f"'{path}' cannot be read: {error.strerror or error}.")


def dump_signed(body: dict[str, Any]) -> bytes:
    """JSON with a checksum of itself under 'sha256'."""
    return _dump(body | {"sha256": digest(_dump(body))})


def load_signed(data: bytes, path: Path) -> dict[str, Any]:
    """What `dump_signed` was given.

    Raises:
        DatasetError: any byte differs.
    """
    try:
        body = json.loads(data)
        sha256 = body.pop("sha256")
        sound = sha256 == digest(_dump(body)) and data == dump_signed(body)
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        sound = False
    if not sound:
        raise DatasetError(f"'{path}' is damaged (its checksum differs); copy it again.")
    assert isinstance(body, dict)
    return body


def dump(data: Any) -> bytes:
    """JSON for people and LeRobot."""
    return json.dumps(data, indent=4, ensure_ascii=False).encode()


def _dump(data: Any) -> bytes:
    return json.dumps(data, indent=1, sort_keys=True).encode()


def write_synced(path: Path, data: bytes) -> None:
    """Writes a file through to the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Forces a file or folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
