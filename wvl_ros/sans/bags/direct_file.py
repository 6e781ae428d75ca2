"""A file that is written past the page cache: for streams of images, which would only push everything else out of it.

Copying into the page cache costs more than all else that a recorder does; see `benchmarks/recording.py`.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from pathlib import Path

BUFFER = 1 << 22  # bytes
_BLOCK = 4096  # bytes; what disks want offsets and lengths to be multiples of


class DirectFile:
    """A new file for writing, with the part of `io.BufferedWriter` that an MCAP writer needs.

    Uses O_DIRECT where the file system has it. After `flush` the file holds all that was written.
    """

    def __init__(self, path: Path) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        direct = getattr(os, "O_DIRECT", 0)
        try:
            self._file = os.open(path, flags | direct, 0o644)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self._file = os.open(path, (flags & ~os.O_EXCL) | os.O_TRUNC, 0o644)  # the failed call may have made it
        self._memory = mmap.mmap(-1, BUFFER)  # at the start of a page, as O_DIRECT demands
        self._buffer = memoryview(self._memory)
        self._start, self._fill = 0, 0  # offset of the buffer in the file, bytes in it

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Adds bytes."""
        view, position = memoryview(data), 0
        while position < len(view):
            size = min(len(view) - position, BUFFER - self._fill)
            self._buffer[self._fill : self._fill + size] = view[position : position + size]
            self._fill += size
            position += size
            if self._fill == BUFFER:
                self._store(BUFFER)
                self._start, self._fill = self._start + BUFFER, 0
        return len(view)

    def tell(self) -> int:
        """Bytes written so far."""
        return self._start + self._fill

    def flush(self) -> None:
        """Hands all to the disk."""
        if not self._fill:
            return
        whole = self._fill // _BLOCK * _BLOCK
        rest = self._fill - whole
        if rest:  # padded to a block, which is written again when it is full
            self._buffer[self._fill : whole + _BLOCK] = bytes(_BLOCK - rest)
        self._store(whole + _BLOCK if rest else whole)
        os.ftruncate(self._file, self._start + self._fill)
        self._buffer[:rest] = self._buffer[whole : self._fill]
        self._start, self._fill = self._start + whole, rest

    def close(self) -> None:
        """Flushes, and closes the file whatever happens."""
        if self._file < 0:
            return
        try:
            self.flush()
        finally:
            file, self._file = self._file, -1
            os.close(file)
            self._buffer.release()
            self._memory.close()

    def _store(self, size: int) -> None:
        done = 0
        while done < size:
            try:
                done += os.pwrite(self._file, self._buffer[done:size], self._start + done)
            except OSError as error:
                flags = fcntl.fcntl(self._file, fcntl.F_GETFL)
                direct = getattr(os, "O_DIRECT", 0)
                if error.errno != errno.EINVAL or not flags & direct:
                    raise
                fcntl.fcntl(self._file, fcntl.F_SETFL, flags & ~direct)  # this file system wants it otherwise
