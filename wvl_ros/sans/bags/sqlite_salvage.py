"""Reads what there is of a rosbag2 sqlite3 file whose writer was killed, and writes it anew where it is damaged."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

JOURNALS = ("-journal", "-wal", "-shm")


def is_whole(path: Path) -> bool:
    """Whether a file has no journal beside it and sqlite finds nothing wrong with it."""
    if any(path.with_name(path.name + end).exists() for end in JOURNALS):
        return False
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as base:
            (answer,) = base.execute("PRAGMA quick_check(1)").fetchone()
            base.execute("SELECT count(*) FROM topics").fetchone()
            return bool(answer == "ok")
    except (sqlite3.Error, TypeError):
        return False


def settle(path: Path) -> bool:
    """Lets sqlite do what its journal asks for, then `is_whole`. Only unfinished transactions are undone."""
    try:
        with closing(sqlite3.connect(path)) as base:
            base.execute("SELECT count(*) FROM sqlite_master").fetchone()  # rolls a journal back
            base.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            base.execute("PRAGMA journal_mode=DELETE")
    except sqlite3.Error:
        return False
    return is_whole(path)


def salvage(path: Path, target: Path) -> int:
    """Copies all tables of a damaged file, and every message that can be read, to a new one.

    Returns:
        The number of messages; 0 when not even the topics can be read.
    """
    target.unlink(missing_ok=True)
    _extend(path)
    count = 0
    with closing(sqlite3.connect(path)) as old, closing(sqlite3.connect(target)) as new:
        try:
            tables = old.execute("SELECT name, sql FROM sqlite_master WHERE sql NOT NULL ORDER BY rowid").fetchall()
        except sqlite3.Error:
            return 0
        names = [name for name, _ in tables]
        if not {"topics", "messages"} <= set(names):
            return 0
        for name, statement in tables:
            if not name.startswith("sqlite_"):
                new.execute(statement)
        for name, statement in tables:
            if statement.upper().startswith("CREATE TABLE") and not name.startswith("sqlite_"):
                for row in _rows(old, name):
                    new.execute(f'INSERT OR IGNORE INTO "{name}" VALUES ({",".join("?" * len(row))})', row)
                    count += name == "messages"
        new.commit()
    return count


def _extend(path: Path) -> None:
    """Gives a file that was cut off the length that its header tells: sqlite does not even open a shorter one."""
    with path.open("rb") as file:
        header = file.read(32)
    if len(header) == 32 and header.startswith(b"SQLite format 3"):
        page, pages = int.from_bytes(header[16:18], "big"), int.from_bytes(header[28:32], "big")
        length = (65536 if page == 1 else page) * pages
        if path.stat().st_size < length:
            os.truncate(path, length)


def _rows(base: sqlite3.Connection, table: str) -> Iterator[tuple[Any, ...]]:
    """All rows that can be read, in order; around damage in steps that grow."""
    last, gap = -1, 1
    while gap < 1 << 40:
        try:
            for row in base.execute(f'SELECT rowid, * FROM "{table}" WHERE rowid > ? ORDER BY rowid', (last,)):
                last, gap = row[0], 1
                yield row[1:]
            return
        except sqlite3.Error:
            last, gap = last + gap, gap * 2
