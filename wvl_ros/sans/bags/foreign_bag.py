"""Episodes in bags of other people's nodes: a grid at the control rate, from when all streams are there to when not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wvl_ros.errors import BagError
from wvl_ros.sans.bags.alignment import (
    SECOND,
    Times,
    align_states,
    clock_offset,
    common_clock,
    gaps,
    grid,
    report,
)
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
from wvl_ros.sans.bags.configurations import Configurations
from wvl_ros.sans.bags.mapping import Topics
from wvl_ros.sans.bags.streams import Bag
from wvl_ros.sans.bags.topics import ABORTED, FINISHED
from wvl_ros.sans.episode import OUTCOMES, Episode
from wvl_ros.worlds.droid import CONTROL_HZ

Array = NDArray[np.float64]


def read_foreign(bag: Bag, topics: Topics, options: AlignmentOptions) -> list[tuple[str, Callable[[], BagEpisode]]]:
    """The bag's episodes, named '0', '1', ... or by their ids, each read when its function is called.

    Raises:
        BagError: damaged, or a clock jumps back. The functions: a hole, a missing joint, NaN, too short.
    """
    reader = _Reader(bag, topics, options)
    windows = reader.windows()
    return [(key, lambda row=row: reader.read(*row)) for key, row in windows]  # type: ignore[misc]


class _Reader:
    def __init__(self, bag: Bag, topics: Topics, options: AlignmentOptions) -> None:
        self._bag, self._topics, self._options = bag, topics, options
        states = (topics.joint_states, topics.gripper_states, topics.pose, topics.commands, topics.gripper_commands)
        whole = {name: True for name in (*states, topics.status) if name}
        whole |= dict.fromkeys(topics.cameras.values(), False)
        self._streams = bag.scan(whole)
        self._values = Configurations(bag, topics, self._streams)
        self._statuses = messages(bag, self._streams[topics.status]) if topics.status else []
        self._times, self._offsets, self._clock = self._read_clocks()

    def _read_clocks(self) -> tuple[dict[str, Times], dict[str, int | None], str]:
        """Times of all messages on one clock: the header stamps' where they agree, else that of the recording."""
        headers = {name: header_stamps(self._bag, stream) for name, stream in self._streams.items()}
        offsets = {n: clock_offset(h, self._streams[n].time) for n, h in headers.items() if h is not None and len(h)}
        known: dict[str, int | None] = {name: offsets.get(name) for name in self._streams}
        if not common_clock(offsets):
            return {name: stream.time for name, stream in self._streams.items()}, known, "recording"
        common = int(np.median(list(offsets.values()))) if offsets else 0
        times = {n: stream.time - common if (h := headers[n]) is None else h for n, stream in self._streams.items()}
        return times, known, "header"

    def windows(self) -> list[tuple[str, tuple[int, int, int, Any]]]:
        """Key of each episode, with the segment of its clock, its first and last time, and its status if it has one."""
        parts = {name: segments(times) for name, times in self._times.items() if len(times)}
        jumps = {name: part for name, part in parts.items() if len(part) > 1}
        if jumps and self._options.split_gap is None:
            name, part = next(iter(jumps.items()))
            times, at = self._times[name], int(part[1][0])
            raise BagError(
                f"The clock of '{name}' in the bag '{self._bag.path}' jumps back by "
                f"{(times[at - 1] - times[at]) / SECOND:.3f} s after {(times[at - 1] - times[0]) / SECOND:.2f} s; give "
                "--split-gap to end an episode there."
            )
        counts = {len(part) for part in parts.values()}
        if len(counts) > 1:
            raise BagError(f"The clocks in the bag '{self._bag.path}' do not jump back together; record it again.")
        rows: list[tuple[str, tuple[int, int, int, Any]]] = []
        for segment in range(counts.pop()):
            rows += self._split(segment, parts)
        return rows

    def _split(self, segment: int, parts: dict[str, list[Any]]) -> list[tuple[str, tuple[int, int, int, Any]]]:
        """Episodes within a segment: by status, else by silences of the joint states."""
        by_status: dict[str, list[tuple[int, Any]]] = {}
        if self._statuses:
            for row in parts[self._topics.status][segment]:
                message = self._statuses[row]
                if message.episode_id:
                    by_status.setdefault(str(message.episode_id), []).append(
                        (int(self._times[self._topics.status][row]), message)
                    )
        if by_status:
            return [
                (name, (segment, min(t for t, _ in found), max(t for t, _ in found), found[-1][1]))
                for name, found in by_status.items()
            ]
        times = np.sort(self._times[self._topics.joint_states][parts[self._topics.joint_states][segment]])
        gap = self._options.split_gap
        episodes = [times] if gap is None else np.split(times, gaps(times, gap))
        slack = SECOND // 2  # other streams may begin a little earlier and end a little later
        names = [f"{segment}.{i}" if segment else str(i) for i in range(len(episodes))]
        return [
            (name, (segment, int(part[0]) - slack, int(part[-1]) + slack, None))
            for name, part in zip(names, episodes, strict=True)
        ]

    def read(self, segment: int, first: int, last: int, status: Any) -> BagEpisode:
        """One episode."""
        bag, topics, mapping = self._bag, self._topics, self._topics.mapping
        tracks = {}
        for name, stream in self._streams.items():
            parts = segments(self._times[name])
            rows = parts[segment] if segment < len(parts) else np.empty(0, np.int64)
            tracks[name] = Track.sort(stream, self._times[name], rows, self._offsets[name]).between(first, last)
        arm = self._values.usable(tracks[topics.joint_states], "arm")
        hand = self._values.usable(tracks[topics.gripper_states], "gripper")
        needed = [arm, hand, *(tracks[name] for name in (*topics.cameras.values(), topics.pose) if name)]
        for track in needed:
            if not len(track.times):
                raise BagError(f"'{track.stream.topic}' in the bag '{bag.path}' has no messages during the episode.")
        begin, end = max(track.times[0] for track in needed), min(track.times[-1] for track in needed)
        steps = grid(int(begin), int(end), CONTROL_HZ)
        if len(steps) < 2:
            raise BagError(
                f"The streams in the bag '{bag.path}' have less than a control step in common ({mapping.name}); record "
                "cameras and states at the same time."
            )
        tolerance = mapping.image_tolerance or 0.5 / CONTROL_HZ
        cameras, reports = align_cameras(
            bag,
            {c: tracks[n] for c, n in topics.cameras.items()},
            dict(mapping.cameras),
            steps,
            tolerance,
            self._options,
        )

        def states(short: str, track: Track, read: Callable[[Any], Array]) -> Array:
            name = track.stream.topic
            chosen, held = align_states(
                name, track.times, steps, mapping.state_gap, allow_holes=self._options.allow_holes, start=int(steps[0])
            )
            reports[short] = report(track.times, steps, chosen, held, track.offset)
            values = read(track.order[chosen])
            check_finite(bag, name, values, steps)
            return values

        joints = states("joint_states", arm, self._values.joints)
        gripper = states("gripper_states", hand, self._values.gripper)
        poses = states("pose", tracks[topics.pose], self._values.poses) if topics.pose else self._values.forward(joints)
        commands, how = self._commands(tracks, steps, poses, gripper)
        check_finite(bag, topics.commands or "commands", commands, steps)
        outcome, judge = self._outcome(status)
        reward = np.zeros(len(steps) - 1, np.float32)
        reward[-1:] = outcome == "success"
        note = bag.custom_data
        episode = Episode(
            images={},
            joint_position=joints,
            cartesian_position=poses,
            gripper_position=gripper,
            action=commands[1:],
            reward=reward,
            task=self._options.task or (str(status.task) if status else note.get("task", "")),
            instruction=self._options.instruction
            or (str(status.instruction) if status else note.get("instruction", "")),
            outcome=outcome,
            outcome_source=judge,
            source=mapping.source,
            episode_id=str(status.episode_id) if status else "",
            commanded_start=commands[0],
            extra={"actions": how, "clock": self._clock},
        )
        facts = {"clock": self._clock, "actions": how, "image_stride": 1}
        return BagEpisode(episode, cameras, summary(mapping.name, steps, reports, **facts))

    def _commands(self, tracks: dict[str, Track], steps: Times, poses: Array, gripper: Array) -> tuple[Array, str]:
        """Commanded pose and gripper (N, 7) in force at each step, and where they come from, in words."""
        topics, mapping = self._topics, self._topics.mapping
        body, how = poses, "next measured poses"
        track = self._values.usable(tracks[topics.commands], "arm") if topics.commands else None
        if track is not None and len(track.times):
            body, how = self._values.commanded(track, steps, poses), f"commands on {topics.commands}"
        track = self._values.usable(tracks[topics.gripper_commands], "gripper") if topics.gripper_commands else None
        if track is not None and len(track.times):
            grip, by = self._values.commanded_gripper(track, steps, gripper), f"commands on {topics.gripper_commands}"
        elif mapping.gripper_threshold is not None:
            grip = (gripper > mapping.gripper_threshold).astype(float)
            by = f"closed when measured beyond {mapping.gripper_threshold:g}"
        else:
            grip, by = gripper, "next measured position"
        return np.hstack([body, np.clip(grip, 0.0, 1.0)]), f"{how}; gripper {by}"

    def _outcome(self, status: Any) -> tuple[str, str]:
        note = self._bag.custom_data
        told = note.get("outcome", "")
        if told not in OUTCOMES:
            raise BagError(f"The bag's metadata name the outcome '{told}'; use one of: {', '.join(OUTCOMES[1:])}.")
        if told:
            return told, note.get("outcome_source", "operator")
        if status is not None and status.state in (FINISHED, ABORTED) and status.outcome in OUTCOMES[1:]:
            return str(status.outcome), "world"
        return "", ""
