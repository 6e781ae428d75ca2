"""Messages that came before their episode was known, and those that stay in force."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

KEPT = 400  # messages, two dozen steps
LATCHED = 100  # messages a latched topic: several publishers may each have one in force (static transforms)
JUMP = 1_000_000_000  # ns; a clock that goes back less far is late, not set


class KeptMessage(NamedTuple):
    """A message; `stamp` and `received` in ns. `stamped`: whether the stamp is its own, and not that of its receipt."""

    topic: str
    stamp: int
    data: bytes
    stamped: bool
    received: int


class KeptMessages:
    """What the next bag may begin with. Only the newest messages are kept, and none of before a clock was set back."""

    def __init__(self) -> None:
        self._messages: deque[KeptMessage] = deque(maxlen=KEPT)
        self._latest: dict[str, int] = {}
        self._latched: dict[str, deque[bytes]] = {}

    def jumped_back(self, topic: str, stamp: int) -> bool:
        """Whether a topic's clock (ns) was set back; then everything that was kept is forgotten."""
        before, self._latest[topic] = self._latest.get(topic, 0), stamp
        if before - stamp <= JUMP:
            return False
        self._messages.clear()
        self._latest = {topic: stamp}
        return True

    def add(self, message: KeptMessage) -> None:
        """Keeps a message."""
        self._messages.append(message)

    def take(self) -> list[KeptMessage]:
        """The kept messages in the order they came; they are not kept any longer."""
        messages = list(self._messages)
        self._messages.clear()
        return messages

    def latch(self, topic: str, data: bytes) -> None:
        """Keeps a message that is in force until the recorder ends."""
        self._latched.setdefault(topic, deque(maxlen=LATCHED)).append(data)

    def latched(self) -> Iterator[tuple[str, bytes]]:
        """The messages in force, oldest first a topic."""
        for topic, messages in self._latched.items():
            for data in messages:
                yield topic, data
