"""Reads a rosbag2 folder (ours, or one by `ros2 bag record`) as an `Episode`."""

from __future__ import annotations

import struct
from bisect import bisect_right
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rosbags.rosbag2 import Reader, ReaderError

from wvl_ros.errors import EpisodeError
from wvl_ros.sans.episode import Episode
from wvl_ros.sans.images import image_array
from wvl_ros.sans.states import read_joint_state, read_pose
from wvl_ros.sans.topics import ABORTED, FINISHED, IMAGES, TOPICS, message_types
from wvl_ros.worlds.droid import CAMERAS, CONTROL_HZ

Messages = dict[str, list[tuple[int, Any]]]  # topic name without namespace -> (header stamp in ns, message)

PERIOD = 1_000_000_000 // CONTROL_HZ
_NEEDED = (*IMAGES, "joint_states", "cartesian_position", "reward")


def read_bag(path: Path | str, *, namespace: str = "", episode_id: str = "") -> Episode:
    """The episode in a bag, aligned by its control steps.

    Steps, actions (`commanded_pose`) and rewards come from the reward topic. An image or state belongs to a step when
    it is the latest with a header stamp up to that step's, so cameras may have stamps of their own.

    Args:
        path: a rosbag2 folder (with metadata.yaml).
        namespace: which world's topics; '' takes the only one, or the one the recorder names in the bag.
        episode_id: which episode; '' takes the only one.

    Raises:
        EpisodeError: no bag, a damaged one, a topic is missing, or the choice is not clear.
    """
    path = Path(path)
    note = _custom_data(path)
    messages = _read_messages(path, namespace or note.get("namespace", ""))
    episode_id = _choose_episode(path, messages, episode_id)
    steps = _steps(path, messages["reward"], episode_id)
    stamps = [stamp for stamp, _ in steps]
    rewards = [message for _, message in steps]
    commands = np.stack([np.asarray(message.commanded_pose, float) for message in rewards])
    statuses = [m for _, m in messages.get("episode_status", []) if m.episode_id == episode_id]
    status = statuses[-1] if statuses else None
    states = [read_joint_state(m) for m in _latest(path, "joint_states", messages, stamps)]
    outcome = (
        status.outcome if status is not None and status.state in (FINISHED, ABORTED) else note.get("outcome", "aborted")
    )
    images = {
        camera: np.stack([image_array(m) for m in _latest(path, f"{camera}/image_raw", messages, stamps)])
        for camera in CAMERAS
    }
    return Episode(
        images=images,
        joint_position=np.stack([joint for joint, _ in states]),
        cartesian_position=np.stack([read_pose(m) for m in _latest(path, "cartesian_position", messages, stamps)]),
        gripper_position=np.stack([gripper for _, gripper in states]),
        action=commands[1:],
        reward=np.array([message.reward for message in rewards[1:]], np.float32),
        task=status.task if status else "",
        instruction=status.instruction if status else "",
        outcome=outcome,
        source=f"policy/{status.world}" if status else "",
        episode_id=episode_id,
        commanded_start=commands[0],
        extra={
            "started_from": status.source if status else "",
            "seed": int(status.seed) if status else -1,
            "success_probability": [float(message.success_probability) for message in rewards],
        },
    )


def namespaces(path: Path | str) -> list[str]:
    """Namespaces in a bag that hold an episode's reward topic."""
    try:
        with Reader(Path(path)) as reader:
            return sorted(
                c.topic[: -len("/reward")] for c in reader.connections if c.topic.endswith("/reward") and c.msgcount
            )
    except (ReaderError, OSError, struct.error, ValueError) as error:
        raise _unreadable(path, error) from error


def last_episode(path: Path | str, namespace: str) -> str:
    """Name of the episode that began last in a namespace of a bag; '' when none has its beginning there."""
    store = message_types()
    try:
        with Reader(Path(path)) as reader:
            rewards = [c for c in reader.connections if c.topic == f"{namespace}/reward"]
            messages = [store.deserialize_cdr(raw, c.msgtype) for c, _, raw in reader.messages(rewards)]
    except (ReaderError, OSError, struct.error, ValueError) as error:
        raise _unreadable(path, error) from error
    return next((str(m.episode_id) for m in reversed(messages) if m.step == 0), "")  # type: ignore[attr-defined]


def _custom_data(path: Path) -> dict[str, str]:
    """What the recorder noted in the bag: episode_id, outcome, namespace."""
    try:
        info = yaml.safe_load((path / "metadata.yaml").read_text(encoding="utf-8"))["rosbag2_bagfile_information"]
        return dict(info.get("custom_data") or {})
    except FileNotFoundError:
        raise EpisodeError(f"'{path}' is not a bag: it has no metadata.yaml (was its recorder killed?).") from None
    except (OSError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise _unreadable(path, error) from error


def _read_messages(path: Path, namespace: str) -> Messages:
    found = namespaces(path)
    if not namespace:
        if len(found) != 1:
            what = f"the worlds {', '.join(found)}: name one" if found else "no reward topic, so no episode"
            raise EpisodeError(f"The bag '{path}' holds {what}.")
        namespace = found[0]
    store = message_types()
    messages: Messages = {}
    try:
        with Reader(path) as reader:
            wanted = {f"{namespace}/{name}": name for name in (*_NEEDED, "episode_status")}
            connections = [c for c in reader.connections if c.topic in wanted]
            for connection in connections:
                name, kind = wanted[connection.topic], connection.msgtype
                if kind != TOPICS[name]:
                    raise EpisodeError(
                        f"'{connection.topic}' in the bag '{path}' is of type {kind}, not {TOPICS[name]}."
                    )
                if kind.startswith("wvl_ros/") and connection.digest not in ("", store.hash_rihs01(kind)):
                    raise EpisodeError(
                        f"The bag '{path}' was recorded with another version of {kind}; use that version of wvl_ros."
                    )
            for connection, _, raw in reader.messages(connections):
                message = store.deserialize_cdr(raw, connection.msgtype)
                stamp = message.header.stamp  # type: ignore[attr-defined]
                messages.setdefault(wanted[connection.topic], []).append(
                    (stamp.sec * 1_000_000_000 + stamp.nanosec, message)
                )
    except (ReaderError, OSError, struct.error, ValueError) as error:
        raise _unreadable(path, error) from error
    for name in _NEEDED:
        if name not in messages:
            raise EpisodeError(f"The bag '{path}' has no messages on '{namespace}/{name}'; record that topic as well.")
    return messages


def _choose_episode(path: Path, messages: Messages, episode_id: str) -> str:
    ids = sorted({message.episode_id for _, message in messages["reward"]})
    if episode_id in ids:
        return episode_id
    if episode_id or len(ids) != 1:
        wrong = f"no episode '{episode_id}', but" if episode_id else "more than one episode, name one:"
        raise EpisodeError(f"The bag '{path}' holds {wrong} {', '.join(ids)}.")
    return ids[0]


def _steps(path: Path, rewards: list[tuple[int, Any]], episode_id: str) -> list[tuple[int, Any]]:
    """Stamp and reward message of steps 0, 1, 2, ... of an episode."""
    by_step = {message.step: (stamp, message) for stamp, message in rewards if message.episode_id == episode_id}
    gap = next((step for step in range(len(by_step)) if step not in by_step), None)
    if gap is not None:
        raise EpisodeError(
            f"The bag '{path}' lacks step {gap} of episode '{episode_id}'; it was recorded too late or with losses."
        )
    return [by_step[step] for step in range(len(by_step))]


def _latest(path: Path, name: str, messages: Messages, stamps: list[int]) -> list[Any]:
    """For each step the latest message of a topic up to the step's stamp; the first step may look one period ahead."""
    rows = sorted(messages[name], key=lambda row: row[0])
    times = [stamp for stamp, _ in rows]
    chosen = []
    for number, stamp in enumerate(stamps):
        index = bisect_right(times, stamp) - 1
        if number == 0 and index < 0 and times[0] <= stamp + PERIOD:
            index = 0
        if index < 0:
            raise EpisodeError(
                f"The bag '{path}' has no '{name}' at step {number}; start the recorder before the episode."
            )
        chosen.append(rows[index][1])
    return chosen


def _unreadable(path: Path | str, error: Exception) -> EpisodeError:
    return EpisodeError(f"The bag '{path}' cannot be read: {str(error).rstrip('.')}.")
