"""Reads rosbag2's .db3 files: stamps and places first, data when they are asked for."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

from wvl_ros.sans.bags.mcap_file import HEAD, MAX_MESSAGE, Found, Topic


class SqliteFile:
    """One .db3 file, read-only.

    Raises:
        ValueError, sqlite3.Error, OSError: damaged (see `damage.reading`).
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with path.open("rb") as file:
            magic = file.read(16)
        if not magic:
            raise ValueError("the file is empty")
        if magic != b"SQLite format 3\0":
            raise ValueError("the file does not begin like an SQLite database")
        # Without a journal nobody writes: no locks are needed, and a read-only disk is no problem.
        left = [path.with_name(path.name + end) for end in ("-wal", "-journal")]
        self._mode = "mode=ro" if any(p.exists() and p.stat().st_size for p in left) else "immutable=1"
        self._threads = threading.local()
        self._open: list[sqlite3.Connection] = []
        try:
            self._topics = self._read_topics()
        except BaseException:
            self.close()
            raise

    def topics(self) -> dict[str, Topic]:
        """By name."""
        used = {row[0] for row in self._connection().execute("SELECT DISTINCT topic_id FROM messages")}
        return {t.name: Topic(t.name, t.type, n in used, t.digest, t.encoding) for n, t in self._topics.items()}

    def scan(self, whole: Mapping[str, bool]) -> Iterator[Found]:
        """Every message in the order of recording; see `McapFile.scan`."""
        for number, topic in self._topics.items():
            if whole and topic.name not in whole:
                continue
            data = "data" if whole.get(topic.name) else f"substr(data, 1, {HEAD if whole else 0})"
            query = f"SELECT id, timestamp, length(data), {data} FROM messages WHERE topic_id = ? ORDER BY id"
            for place, time, length, content in self._connection().execute(query, (number,)):
                if not (isinstance(time, int) and isinstance(content, bytes) and 0 <= length <= MAX_MESSAGE):
                    raise ValueError(f"message {place} is not one of rosbag2's")
                yield Found(topic.name, time, place, content)

    def read(self, place: int) -> bytes:
        """A message's data. Threads may read at the same time."""
        row = self._connection().execute("SELECT data FROM messages WHERE id = ?", (place,)).fetchone()
        if row is None or not isinstance(row[0], bytes):
            raise ValueError(f"message {place} is gone")
        return row[0]

    def close(self) -> None:
        """Closes the connections of all threads."""
        for connection in self._open:
            connection.close()
        self._open.clear()

    def _connection(self) -> sqlite3.Connection:
        found: sqlite3.Connection | None = getattr(self._threads, "connection", None)
        if found is None:
            uri = f"file:{quote(str(self._path.absolute()))}?{self._mode}"
            found = self._threads.connection = sqlite3.connect(uri, uri=True, timeout=1.0, check_same_thread=False)
            self._open.append(found)
            found.execute("PRAGMA cell_size_check = ON")
            found.execute("PRAGMA trusted_schema = OFF")
        return found

    def _read_topics(self) -> dict[int, Topic]:
        columns = {row[1] for row in self._connection().execute("PRAGMA table_info(topics)")}
        if not {"id", "name", "type", "serialization_format"} <= columns:
            raise ValueError("the database has no topics as rosbag2 writes them")
        digest = "type_description_hash" if "type_description_hash" in columns else "''"
        rows = self._connection().execute(f"SELECT id, name, type, {digest}, serialization_format FROM topics")
        return {
            number: Topic(str(name), str(kind), True, str(digest), str(encoding))
            for number, name, kind, digest, encoding in rows
        }
