"""Frees the shared memory that killed ROS processes leave behind: Fast DDS keeps 34 MB a process there."""

from __future__ import annotations

import fcntl
import re
import time
from pathlib import Path

FOLDER = Path("/dev/shm")
YOUNG = 10.0  # s; a process that is just starting makes its lock file before it locks it
_LOCK = re.compile(r"fastdds_[0-9a-z]{16}_el")


def free_leftovers(folder: Path = FOLDER) -> int:
    """Removes segments whose owner is gone: nobody holds the lock on their `_el` file (as `fastdds shm clean` does).

    Returns:
        Freed bytes.
    """
    freed = 0
    for lock in folder.glob("fastdds_*_el"):
        if not _LOCK.fullmatch(lock.name):
            continue
        segment = lock.with_name(lock.name.removesuffix("_el"))
        try:
            if time.time() - lock.stat().st_mtime < YOUNG:
                continue
            with lock.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # refused while its owner lives
                size = segment.stat().st_blocks * 512 if segment.exists() else 0
                segment.unlink(missing_ok=True)
                lock.unlink(missing_ok=True)
                freed += size
        except OSError:  # in use, another user's, or gone by now
            continue
    return freed
