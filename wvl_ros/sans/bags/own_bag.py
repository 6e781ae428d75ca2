"""Episodes in bags of our own nodes: the reward's stamps are the control steps, its commands the actions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wvl_ros.errors import BagError, ObservationError
from wvl_ros.sans.bags.alignment import Times, align_states, image_stride, report
from wvl_ros.sans.bags.bag_episode import (
    AlignmentOptions,
    BagEpisode,
    Track,
    align_cameras,
    check_finite,
    header_stamps,
    messages,
    segments,
    summary,
)
from wvl_ros.sans.bags.damage import reading
from wvl_ros.sans.bags.mapping import Topics
from wvl_ros.sans.bags.states import read_joint_state, read_pose
from wvl_ros.sans.bags.streams import Bag
from wvl_ros.sans.bags.topics import ABORTED, FINISHED, message_types
from wvl_ros.sans.episode import OUTCOMES, Episode
from wvl_ros.worlds.droid import CONTROL_HZ

TOLERANCE = 0.5 / CONTROL_HZ
EXACT = 1e-6  # s, where two worlds published at the same time: stamps tell whose a message is


def read_own(bag: Bag, topics: Topics, options: AlignmentOptions) -> list[tuple[str, Callable[[], BagEpisode]]]:
    """The bag's episodes by their ids, in the order of their beginnings, each read when its function is called.

    Raises:
        BagError: damaged, of another version of wvl_ros, or without steps. The functions: a hole, a missing step, a
            clock that jumps back.
    """
    for name in filter(None, (topics.steps, topics.status)):
        topic = bag.topics[name]
        if topic.digest not in ("", message_types().hash_rihs01(topic.type)):
            raise BagError(
                f"The bag '{bag.path}' was recorded with another version of {topic.type}; use that version of wvl_ros."
            )
    reader = _Reader(bag, topics, options)
    ids = sorted(reader.steps, key=lambda name: min(reader.steps[name][row][0] for row in reader.steps[name]))
    return [(name, lambda name=name: reader.read(name)) for name in ids]  # type: ignore[misc]


class _Reader:
    def __init__(self, bag: Bag, topics: Topics, options: AlignmentOptions) -> None:
        self._bag, self._topics, self._options = bag, topics, options
        whole = {topics.joint_states: True, topics.pose: True, topics.steps: True}
        whole |= {topics.status: True} if topics.status else {}
        whole |= dict.fromkeys(topics.cameras.values(), False)
        self._streams = bag.scan(whole)
        self._stamps = {name: _stamps(bag, stream) for name, stream in self._streams.items()}
        self._rewards = messages(bag, self._streams[topics.steps])
        self._statuses = messages(bag, self._streams[topics.status]) if topics.status else []
        self.steps: dict[str, dict[int, tuple[int, int]]] = {}  # episode -> step -> (stamp, row of the reward)
        for row, message in enumerate(self._rewards):
            stamp = int(self._stamps[topics.steps][row])
            self.steps.setdefault(str(message.episode_id), {})[int(message.step)] = (stamp, row)

    def read(self, name: str) -> BagEpisode:
        """One episode."""
        bag, topics = self._bag, self._topics
        steps, rows = self._grid(name)
        rewards = [self._rewards[row] for row in rows]
        tracks = self._tracks(rows)
        note = bag.custom_data if bag.custom_data.get("episode_id", name) == name else {}
        images = {camera: tracks[topic] for camera, topic in topics.cameras.items()}
        stride = self._stride(images, steps, note)
        alone = self._alone(name)
        tolerance = (topics.mapping.image_tolerance or TOLERANCE) if alone else EXACT
        cameras, streams = align_cameras(
            bag, images, dict(topics.mapping.cameras), steps, tolerance, self._options, stride
        )
        joints, grippers = [], []
        poses = []
        for short, topic in (("joint_states", topics.joint_states), ("cartesian_position", topics.pose)):
            track = tracks[topic]
            chosen, held = align_states(
                topic,
                track.times,
                steps,
                topics.mapping.state_gap if alone else EXACT,
                allow_holes=self._options.allow_holes,
                start=int(steps[0]),
            )
            streams[short] = report(track.times, steps, chosen, held, track.offset)
            found = self._decode(topic, track.order[chosen])
            try:
                if short == "joint_states":
                    joints, grippers = (list(c) for c in zip(*map(read_joint_state, found), strict=True))
                else:
                    with np.errstate(invalid="ignore", divide="ignore"):
                        poses = [read_pose(message) for message in found]
            except ObservationError as error:
                raise BagError(f"'{topic}' in the bag '{bag.path}': {error}") from error
        commands = np.stack([np.asarray(message.commanded_pose, float) for message in rewards])
        columns = {
            topics.joint_states: np.hstack([np.stack(joints), np.stack(grippers)]),
            topics.pose: np.stack(poses),
            topics.steps: np.hstack([commands, [[float(message.reward)] for message in rewards]]),
        }
        for topic, values in columns.items():
            check_finite(bag, topic, values, steps)
        status = next((m for m in reversed(self._statuses) if m.episode_id == name), None)
        outcome, judge = _outcome(note, status)
        episode = Episode(
            images={},
            joint_position=np.stack(joints),
            cartesian_position=np.stack(poses),
            gripper_position=np.stack(grippers),
            action=commands[1:],
            reward=np.array([message.reward for message in rewards[1:]], np.float32),
            task=str(status.task) if status else "",
            instruction=str(status.instruction) if status else "",
            outcome=outcome,
            outcome_source=judge,
            source=note.get("source") or (f"policy/{status.world}" if status else ""),
            policy=note.get("policy", ""),
            world_model=note.get("world_model", ""),
            iteration=_number(note.get("iteration", "0")),
            episode_id=name,
            image_stride=stride,
            commanded_start=commands[0],
            extra={
                "started_from": str(status.source) if status else "",
                "seed": int(status.seed) if status else -1,
                "success_probability": [float(message.success_probability) for message in rewards],
            },
        )
        facts = {"clock": "header", "actions": "commanded_pose", "image_stride": stride}
        return BagEpisode(episode, cameras, summary(topics.mapping.name, steps, streams, **facts))

    def _grid(self, name: str) -> tuple[Times, list[int]]:
        """Stamps of the steps 0, 1, 2, ... and the rows of their rewards."""
        by_step = self.steps[name]
        gap = next((step for step in range(len(by_step)) if step not in by_step), None)
        if gap is not None:
            raise BagError(
                f"The bag '{self._bag.path}' lacks step {gap} of episode '{name}'; it was recorded too late or with "
                "losses."
            )
        stamps = np.array([by_step[step][0] for step in range(len(by_step))], np.int64)
        back = np.flatnonzero(np.diff(stamps) <= 0)
        if len(back):
            step = int(back[0]) + 1
            raise BagError(
                f"The clock in the bag '{self._bag.path}' jumps back by {(stamps[step - 1] - stamps[step]) / 1e9:.3f} "
                f"s at step {step} of episode '{name}'; such an episode cannot be aligned."
            )
        return stamps, [by_step[step][1] for step in range(len(by_step))]

    def _alone(self, name: str) -> bool:
        """Whether no other episode has steps between the first and the last of this one."""
        stamps = {other: [stamp for stamp, _ in steps.values()] for other, steps in self.steps.items()}
        first, last = min(stamps[name]), max(stamps[name])
        return not any(first <= stamp <= last for other in stamps if other != name for stamp in stamps[other])

    def _tracks(self, rows: list[int]) -> dict[str, Track]:
        """All streams by time; where the clock was set back between episodes, only the messages of its segment."""
        parts = {topic: segments(stamps) for topic, stamps in self._stamps.items() if len(stamps)}
        count = len(parts[self._topics.steps])
        here = {int(np.searchsorted([part[0] for part in parts[self._topics.steps]], row, "right")) - 1 for row in rows}
        own = here.pop() if len(here) == 1 and count > 1 else None
        tracks = {}
        for topic, stamps in self._stamps.items():
            part = None
            if own is not None and len(parts.get(topic, ())) == count:
                part = parts[topic][own]
            offset = int(np.median(self._streams[topic].time - stamps)) if len(stamps) else None
            tracks[topic] = Track.sort(self._streams[topic], stamps, part, offset)
        return tracks

    def _stride(self, images: dict[str, Track], steps: Times, note: dict[str, str]) -> int:
        if "image_stride" in note:
            return max(1, _number(note["image_stride"]))
        found = {image_stride(t.between(int(steps[0]), int(steps[-1])).times, steps) for t in images.values()}
        return found.pop() if len(found) == 1 else 1

    def _decode(self, topic: str, rows: NDArray[np.int64]) -> list[Any]:
        stream, store = self._streams[topic], message_types()
        with reading(self._bag.path):
            return [store.deserialize_cdr(stream.data[row], stream.type) for row in rows]


def _stamps(bag: Bag, stream: Any) -> Times:
    stamps = header_stamps(bag, stream)
    assert stamps is not None  # all topics of the mapping have headers
    return stamps


def _outcome(note: dict[str, str], status: Any) -> tuple[str, str]:
    """Outcome and who says so: the label in the bag's metadata, else the world's last status."""
    told = note.get("outcome", "")
    if told not in OUTCOMES:
        raise BagError(f"The bag's metadata name the outcome '{told}'; use one of: {', '.join(OUTCOMES[1:])}.")
    over = status is not None and status.state in (FINISHED, ABORTED) and status.outcome in OUTCOMES[1:]
    if told and (note.get("outcome_source") or not over):
        return told, note.get("outcome_source", "world")
    if over or status is None or status.state not in (FINISHED, ABORTED):
        return (str(status.outcome) if over else "aborted"), "world"
    return "", ""  # it came to its end, and nobody knows how it went


def _number(text: str) -> int:
    return int(text) if text.isdigit() else 0
