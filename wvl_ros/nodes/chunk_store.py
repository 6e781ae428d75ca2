"""Where the world's worker thread waits for action chunks."""

from __future__ import annotations

import threading

from wvl_ros.nodes.messages import PlannedChunk


class ChunkStore:
    """Chunks by episode and step, put in by the spinning thread and waited for by the worker.

    Args:
        follow: take part in another world's episodes. Chunks carry that world's episode id then; those of the newest
            episode that has not been followed yet are used, and may come before this world's own episode begins.
    """

    def __init__(self, follow: bool = False) -> None:
        self._follow = follow
        self._condition = threading.Condition()
        self._chunks: dict[str, dict[int, PlannedChunk]] = {}
        self._current: str | None = None
        self._running = False
        self._finished = ""

    def begin(self, episode_id: str) -> None:
        """An episode starts: only its chunks count from now on."""
        with self._condition:
            self._running = True
            if not self._follow:
                self._current, self._chunks = episode_id, {episode_id: {}}
                return
            newest = next(reversed(self._chunks), None)
            self._chunks = {newest: self._chunks[newest]} if newest is not None else {}
            self._current = newest

    def end(self) -> None:
        """The episode is over: what is left of it is dropped."""
        with self._condition:
            if self._current is not None:
                self._finished = self._current
                self._chunks.pop(self._current, None)
            self._current, self._running = None, False

    def put(self, chunk: PlannedChunk) -> bool:
        """Keeps a chunk; False when it belongs to an episode that is over or unknown."""
        with self._condition:
            if not self.accepts(chunk.episode_id):
                return False
            key = chunk.episode_id if self._follow else str(self._current)
            self._chunks.setdefault(key, {})[chunk.step] = chunk
            if self._running and self._current is None:
                self._current = key
            self._condition.notify_all()
            return True

    def accepts(self, episode_id: str) -> bool:
        """Whether chunks of that episode are wanted; '' is the running one, for policies that do not know its name."""
        if self._follow:
            return episode_id != self._finished or not episode_id
        return self._current is not None and episode_id in ("", self._current)

    def wake(self) -> None:
        """Ends a `wait` early."""
        with self._condition:
            self._condition.notify_all()

    def wait(self, step: int, timeout: float) -> PlannedChunk | None:
        """The chunk whose first action is that of `step`, waiting up to `timeout` s or until `wake`; else None."""
        with self._condition:
            if self._take(step) is None and timeout > 0:
                self._condition.wait(timeout)
            return self._take(step)

    def latest(self, step: int) -> PlannedChunk | None:
        """The newest chunk that has an action for `step`."""
        with self._condition:
            fitting = [
                c
                for c in self._chunks.get(self._current or "", {}).values()
                if c.step <= step < c.step + len(c.actions)
            ]
            return max(fitting, key=lambda c: c.step, default=None)

    def _take(self, step: int) -> PlannedChunk | None:
        return self._chunks.get(self._current or "", {}).get(step)
