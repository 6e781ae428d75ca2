"""The folder of a recording that is not finished: hidden, locked while its writer lives, with a note about it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path

NOTE = "recording.json"
# What a bag's custom_data says of its episode, besides outcome and reason.
FACTS = ("episode_id", "namespace", "policy", "world_model", "iteration")


class PartFolder:
    """`<out>/.<episode_id>.<pid>.part` with `bag/` and `recording.json`. Its writer holds a lock on it."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def create(cls, out: Path, episode_id: str, facts: Mapping[str, str]) -> PartFolder:
        """Makes a new one that holds `facts`, locked; raises OSError where that cannot be written."""
        path = out / f".{episode_id}.{os.getpid()}.part"
        number = 1
        while path.exists():  # an episode of the same name that broke off
            number += 1
            path = out / f".{episode_id}.{os.getpid()}-{number}.part"
        path.mkdir(parents=True)
        part = cls(path, os.open(path, os.O_RDONLY | os.O_DIRECTORY))
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(part._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        part.note(facts)
        return part

    @classmethod
    def take(cls, path: Path) -> PartFolder | None:
        """An existing one, locked; None while its writer lives."""
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return None
        except OSError:  # a file system without locks
            pass
        return cls(path, lock)

    @property
    def bag(self) -> Path:
        """The rosbag2 folder."""
        return self.path / "bag"

    def facts(self) -> dict[str, str]:
        """What was noted; empty when that cannot be read."""
        try:
            noted = json.loads((self.path / NOTE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return {str(name): str(value) for name, value in noted.items()} if isinstance(noted, dict) else {}

    def note(self, facts: Mapping[str, str]) -> None:
        """Adds to what is noted."""
        temporary = self.path / f".{NOTE}"
        temporary.write_text(json.dumps(self.facts() | dict(facts)), encoding="utf-8")
        temporary.replace(self.path / NOTE)

    def finish(self, out: Path, episode_id: str) -> Path:
        """Gives the folder its final name, `<out>/<episode_id>` or, if there is one already, `<episode_id>-2`, ..."""
        (self.path / NOTE).unlink(missing_ok=True)
        folder, number = out / episode_id, 1
        while folder.exists():
            number += 1
            folder = out / f"{episode_id}-{number}"
        self.path.rename(folder)
        self.release()
        return folder

    def release(self) -> None:
        """Lets go of the lock."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def unfinished(out: Path) -> list[Path]:
    """Recordings in a folder whose writer is gone."""
    found = []
    for path in sorted(out.glob(".*.part")):
        if path.is_dir() and (part := PartFolder.take(path)) is not None:
            part.release()
            found.append(path)
    return found
