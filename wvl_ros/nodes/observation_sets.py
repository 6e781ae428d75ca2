"""Puts the messages of one observation together by their stamp."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from wvl_ros.nodes.images import image_array
from wvl_ros.sans.bags.states import read_joint_state, read_pose
from wvl_ros.worlds.droid import CAMERAS

KEPT = 50  # sets that may be incomplete at a time, as many as messages a publisher keeps


@dataclass
class ObservationSet:
    """The messages of one stamp (ns) by topic, and when the first of them came (monotonic s)."""

    stamp: int
    came: float
    messages: dict[str, Any] = field(default_factory=dict)

    def observation(self) -> dict[str, np.ndarray]:
        """As a `World` gives it.

        Raises:
            ObservationError: an image's encoding, step or size is wrong.
        """
        observation = {camera: image_array(self.messages[f"{camera}/image_raw"]) for camera in CAMERAS}
        joints, gripper = read_joint_state(self.messages["joint_states"])
        pose = read_pose(self.messages["cartesian_position"])
        return observation | {"joint_position": joints, "cartesian_position": pose, "gripper_position": gripper}


class ObservationSets:
    """Collects sets of one message from each of `topics`; older incomplete ones are given up when one is complete."""

    def __init__(self, topics: tuple[str, ...]) -> None:
        self._topics = topics
        self._open: dict[int, ObservationSet] = {}

    def add(self, topic: str, stamp: int, message: Any, now: float) -> ObservationSet | None:
        """Adds a message; the set it completes, if it does."""
        current = self._open.setdefault(stamp, ObservationSet(stamp, now))
        current.messages[topic] = message
        if len(current.messages) < len(self._topics):
            if len(self._open) > KEPT:
                del self._open[min(self._open)]
            return None
        self._open = {other: s for other, s in self._open.items() if other > stamp}
        return current

    def overdue(self, now: float, patience: float) -> list[str]:
        """Topics that the oldest set has waited for longer than `patience` s."""
        oldest = self._open.get(min(self._open, default=0))
        if oldest is None or now - oldest.came < patience:
            return []
        return [topic for topic in self._topics if topic not in oldest.messages]

    def clear(self) -> None:
        """Forgets all incomplete sets."""
        self._open.clear()
