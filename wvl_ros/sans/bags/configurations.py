"""The arm's configurations in a foreign bag's messages: joints by name, poses, and commands of several types."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from wvl_ros.errors import BagError
from wvl_ros.sans.bags.alignment import Times, hold
from wvl_ros.sans.bags.bag_episode import Track, messages
from wvl_ros.sans.bags.mapping import GripperJoint, Topics
from wvl_ros.sans.bags.streams import Bag, Stream
from wvl_ros.worlds.droid import euler_to_matrix, forward_kinematics, matrix_to_euler
from wvl_ros.worlds.quaternion import quaternion_to_euler

Array = NDArray[np.float64]


class Configurations:
    """Decodes the state and command streams of a bag.

    Raises:
        BagError: a message is damaged, or the joints' names are not there.
    """

    def __init__(self, bag: Bag, topics: Topics, streams: dict[str, Stream]) -> None:
        self._bag, self._topics = bag, topics
        names = (topics.joint_states, topics.gripper_states, topics.pose, topics.commands, topics.gripper_commands)
        self._messages = {name: messages(bag, streams[name]) for name in names if name}
        self.arm, self.hand = self._names()

    def usable(self, track: Track, what: str) -> Track:
        """The messages of a track that have all that is wanted of it; several nodes may share a topic of joint states.

        Args:
            what: 'arm', 'gripper', or anything else for all messages.
        """
        wanted = {"arm": set(self.arm), "gripper": {self.hand.name}}.get(what)
        if wanted is None or not track.stream.type.endswith("JointState"):
            return track
        found = self._messages[track.stream.topic]
        keep = np.array([wanted <= set(found[row].name) and _whole(found[row]) for row in track.order], bool)
        return Track(track.stream, track.times[keep], track.order[keep], track.offset)

    def joints(self, rows: Any) -> Array:
        """Joint positions (N, 7) of messages of the joint states."""
        return np.stack([_named(self._messages[self._topics.joint_states][row], self.arm) for row in rows])

    def gripper(self, rows: Any) -> Array:
        """Gripper positions (N, 1), 0 open .. 1 closed, of messages of the gripper's states."""
        found = self._messages[self._topics.gripper_states]
        values = np.stack([_named(found[row], (self.hand.name,)) for row in rows])
        return np.clip(self.hand.position(values), 0.0, 1.0)

    def poses(self, rows: Any) -> Array:
        """Flange poses (N, 6) of messages of the measured pose."""
        return np.stack([self._flange(self._messages[self._topics.pose][row]) for row in rows])

    def forward(self, joints: Array) -> Array:
        """Flange poses (N, 6) of joint positions (N, 7)."""
        return np.stack([forward_kinematics(row) for row in joints])

    def commanded(self, track: Track, steps: Times, measured: Array) -> Array:
        """Commanded flange poses (N, 6) in force at the steps; the measured ones before the first command."""
        found, kind = self._messages[track.stream.topic], track.stream.type
        chosen = hold(track.times, steps)
        out = measured.copy()
        for step in np.flatnonzero(chosen >= 0):
            message = found[track.order[chosen[step]]]
            if kind.endswith("PoseStamped"):
                out[step] = self._flange(message)
                continue
            joints = _named(message, self.arm) if kind.endswith("JointState") else np.asarray(message.data, float)
            if len(joints) != 7:
                raise BagError(
                    f"A command on '{track.stream.topic}' in the bag '{self._bag.path}' has {len(joints)} numbers, not "
                    "seven joints."
                )
            out[step] = forward_kinematics(joints)
        return out

    def commanded_gripper(self, track: Track, steps: Times, measured: Array) -> Array:
        """Commanded gripper positions (N, 1) in force at the steps; the measured ones before the first command."""
        found, kind = self._messages[track.stream.topic], track.stream.type
        chosen = hold(track.times, steps)
        out = measured.copy()
        for step in np.flatnonzero(chosen >= 0):
            message = found[track.order[chosen[step]]]
            if kind.endswith("JointState"):
                value = _named(message, (self.hand.name,))[0]
            else:
                data = np.asarray(message.data, float).reshape(-1)
                value = data[0] if len(data) else np.nan
            out[step] = self.hand.position(value)
        return out

    def _names(self) -> tuple[tuple[str, ...], GripperJoint]:
        """The arm's joint names and the gripper's joint, as they are called in this bag."""
        topics, mapping = self._topics, self._topics.mapping
        arm_has = {name for message in self._messages[topics.joint_states] for name in message.name}
        hand_has = {name for message in self._messages[topics.gripper_states] for name in message.name}
        arms = [tuple(name.format(arm=arm) for name in mapping.joint_names) for arm in mapping.arms]
        arm = next((names for names in arms if set(names) <= arm_has), None)
        if arm is None:
            wanted = ", ".join(sorted(set(arms[0]) - arm_has))
            raise BagError(
                f"'{topics.joint_states}' in the bag '{self._bag.path}' lacks the joints {wanted}; it has: "
                f"{', '.join(sorted(arm_has)) or 'no names'}. Write the arm's joint_names into the mapping."
            )
        for joint in mapping.gripper_joints:
            for prefix in mapping.arms:
                name = joint.name.format(arm=prefix)
                if name in hand_has:
                    return arm, GripperJoint(name, joint.open, joint.closed)
        raise BagError(
            f"'{topics.gripper_states}' in the bag '{self._bag.path}' lacks the gripper's joint; it has: "
            f"{', '.join(sorted(hand_has)) or 'no names'}. Write the gripper_joints into the mapping."
        )

    def _flange(self, message: Any) -> Array:
        """The flange's pose (6,) of a PoseStamped of the mapping's frame; NaN where the turn is no rotation."""
        p, q = message.pose.position, message.pose.orientation
        turn = np.array([q.x, q.y, q.z, q.w])
        if not np.isfinite(turn).all() or np.linalg.norm(turn) < 1e-6:
            return np.full(6, np.nan)
        position, euler = np.array([p.x, p.y, p.z]), quaternion_to_euler(turn)
        offset = np.asarray(self._topics.mapping.flange_to_pose)
        if not offset.any():
            return np.concatenate([position, euler])
        rotation = euler_to_matrix(euler) @ euler_to_matrix(offset[3:]).T
        return np.concatenate([position - rotation @ offset[:3], matrix_to_euler(rotation)])


def _named(message: Any, names: tuple[str, ...]) -> Array:
    there = list(message.name)
    return np.asarray(message.position, float)[[there.index(name) for name in names]]


def _whole(message: Any) -> bool:
    return len(message.name) == len(message.position)
