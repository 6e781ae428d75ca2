"""Changes of several files that happen whole or not at all: a lock, staged files, a marker, renames.

The new files are staged in `meta/.journal`; then a marker with all renames appears there by one rename. That is the
moment at which the change is made: a writer that dies before leaves nothing, and what one leaves that dies later is
completed by whoever takes the lock next. The renames are done in the order in which they were staged, so a reader that
takes no lock finds the files that others refer to before those that refer to them.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from wvl_ros.errors import DatasetError
from wvl_ros.sans.store.checked_files import dump_signed, load_signed, sync, write_synced
from wvl_ros.sans.store.format import DRAFTS, JOURNAL, LOCK

MARKER = "commit.json"
LOCK_TIMEOUT = 60.0  # s


class ReadOnlyError(DatasetError):
    """A dataset that this user may read but not lock."""


@contextmanager
def locked(root: Path, timeout: float = LOCK_TIMEOUT) -> Iterator[None]:
    """Holds the dataset's lock; what a dead writer has left is completed or removed first.

    Raises:
        DatasetError: another process keeps the lock, it cannot be taken, or what was left is damaged.
    """
    path = root / LOCK
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        kind = ReadOnlyError if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) else DatasetError
        raise kind(f"'{path}' cannot be opened for locking: {error.strerror}.") from error
    try:
        _wait(handle, root, timeout)
        recover(root)
        yield
    finally:
        os.close(handle)


def _wait(handle: int, root: Path, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    pause = 0.002
    while True:
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise DatasetError(
                    f"Another process has held the lock of '{root}' for {timeout:g} s; end it, or try again later."
                ) from None
        except OSError as error:
            raise DatasetError(f"'{root}' cannot be locked: {error.strerror}.") from error
        time.sleep(pause)
        pause = min(2 * pause, 0.05)


def pending(root: Path) -> bool:
    """Whether a change has been committed whose renames are not all done."""
    return (root / JOURNAL / MARKER).exists()


def recover(root: Path) -> None:
    """Completes a change that a dead writer had committed, removes what others left. The lock must be held.

    Raises:
        DatasetError: the marker is damaged, or the disk refuses.
    """
    folder = root / JOURNAL
    try:
        if (folder / MARKER).exists():
            _roll_forward(root)
        elif folder.exists():
            shutil.rmtree(folder)
        _remove_dead_drafts(root)
    except OSError as error:
        raise DatasetError(f"What a writer left in '{folder}' cannot be completed: {error}.") from error


class Change:
    """New versions of files, staged one by one and then made together; a context that drops what is not committed.

    The lock must be held throughout.

    Raises:
        DatasetError: in all methods, when the disk refuses; the dataset is then as before.
    """

    def __init__(self, root: Path) -> None:
        self.root, self._folder = root, root / JOURNAL
        self._moves: list[tuple[str, str]] = []

    def __enter__(self) -> Change:
        return self

    def __exit__(self, *_: object) -> None:
        if not pending(self.root):
            shutil.rmtree(self._folder, ignore_errors=True)

    def write(self, target: Path, data: bytes) -> None:
        """Stages the content of a file, given by its path in the dataset."""
        source = JOURNAL / f"{len(self._moves):03d}{target.suffix}"
        with refusing(self.root):
            self._folder.mkdir(exist_ok=True)
            write_synced(self.root / source, data)
        self._moves.append((str(source), str(target)))

    def move(self, source: Path, target: Path) -> None:
        """Stages a file that is in the dataset's folder already and synced."""
        self._moves.append((str(source.relative_to(self.root)), str(target)))

    def commit(self) -> None:
        """Makes the change."""
        marker = self._folder / MARKER
        with refusing(self.root):
            for _, target in self._moves:  # now, so that no rename can fail for want of space
                (self.root / target).parent.mkdir(parents=True, exist_ok=True)
            part = marker.with_suffix(".part")
            write_synced(part, dump_signed({"moves": self._moves}))
            sync(self._folder)
            part.rename(marker)
            sync(self._folder)
            _roll_forward(self.root)


@contextmanager
def refusing(root: Path) -> Iterator[None]:
    """Turns the system's errors into a sentence.

    Raises:
        DatasetError: the disk is full or refuses.
    """
    try:
        yield
    except OSError as error:
        why = "the disk is full" if error.errno == errno.ENOSPC else str(error)
        raise DatasetError(f"Nothing was added to '{root}': {why}; make room and try again.") from error


def _roll_forward(root: Path) -> None:
    folder = root / JOURNAL
    marker = folder / MARKER
    moves = load_signed(marker.read_bytes(), marker).get("moves")
    if not isinstance(moves, list) or not all(_is_move(move) for move in moves):
        raise DatasetError(f"'{marker}' is no list of renames within the dataset; remove it.")
    parents: dict[Path, None] = {}
    for source, target in moves:
        path = root / target
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            (root / source).replace(path)
        except FileNotFoundError:
            continue  # done by the writer that died
        parents[path.parent] = None
    for parent in parents:
        sync(parent)
    marker.unlink()
    shutil.rmtree(folder)


def _is_move(move: object) -> bool:
    if not isinstance(move, list) or len(move) != 2 or not all(isinstance(path, str) for path in move):
        return False
    paths = [PurePosixPath(path) for path in move]
    return all(not path.is_absolute() and ".." not in path.parts and len(path.parts) > 1 for path in paths)


def new_draft(root: Path) -> tuple[Path, int]:
    """A folder for the files of an episode to come, and the handle that shows that its owner lives.

    The lock must be held.
    """
    with refusing(root):
        folder = root / DRAFTS / f"{os.getpid()}-{time.time_ns()}"
        folder.mkdir(parents=True)
        handle = os.open(folder / "owner", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        fcntl.flock(handle, fcntl.LOCK_EX)
    return folder, handle


def _remove_dead_drafts(root: Path) -> None:
    for folder in (root / DRAFTS).glob("*"):
        try:
            handle = os.open(folder / "owner", os.O_RDWR | os.O_CLOEXEC)
        except OSError:  # its owner died while it made or removed it
            shutil.rmtree(folder, ignore_errors=True)
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:
            continue
        finally:
            os.close(handle)
