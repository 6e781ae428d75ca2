"""An episode back to a rosbag2 MCAP, as our own nodes would have recorded it.

Topics, types and frames are the world node's; stamps are at the control rate, images at their stride. The messages are
chosen so that reading them gives the episode's numbers again to the last bit (see `exact_quaternion`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wvl_ros.errors import BagError, EpisodeError
from wvl_ros.sans.bags.recording import EpisodeRecording, RecordingReport
from wvl_ros.sans.bags.topics import ABORTED, FINISHED, RUNNING, TOPICS, message_types
from wvl_ros.sans.episode import Episode
from wvl_ros.worlds.droid import CAMERAS, CONTROL_HZ, FINGER_NAMES, FINGER_TRAVEL, JOINT_NAMES
from wvl_ros.worlds.quaternion import euler_to_quaternion, quaternion_to_euler
from wvl_ros.worlds.recorded import commanded_poses

Array = NDArray[np.float64]
Picture = NDArray[np.uint8]

PERIOD = 1_000_000_000 // CONTROL_HZ
BASE_FRAME = "base"
_TRIES, _AIMED, _SPREAD = 4000, 6, 6e-16  # of `exact_quaternion`; rad


def export_bag(
    episode: Episode,
    out: Path,
    images: Mapping[str, Iterator[Picture]] | None = None,
    *,
    namespace: str = "/real",
    start: int | None = None,
) -> RecordingReport:
    """Writes `<out>/<episode_id>/bag`, whole or not at all.

    Args:
        episode: its images may be missing when they are given apart.
        images: camera -> the images at steps 0, s, 2 s, ...; by default the episode's own.
        namespace: of the world that it is to look like.
        start: ns, stamp of step 0; by default now.

    Raises:
        EpisodeError: it lacks one of DROID's cameras, has others, or runs at another rate.
        BagError: the bag cannot be written.
    """
    streams = images if images is not None else {camera: iter(stack) for camera, stack in episode.images.items()}
    if set(streams) != set(CAMERAS):
        raise EpisodeError(
            f"A bag of our nodes has the cameras {', '.join(CAMERAS)}; the episode has: {', '.join(streams) or 'none'}."
        )
    if abs(episode.fps - CONTROL_HZ) > 1e-6:
        raise EpisodeError(f"A bag of our nodes has {CONTROL_HZ} steps a second; the episode has {episode.fps:g}.")
    start = time.time_ns() if start is None else start
    facts = {
        "policy": episode.policy,
        "world_model": episode.world_model,
        "iteration": str(episode.iteration),
        "source": episode.source,
        "image_stride": str(episode.image_stride),
    }
    try:
        recording = EpisodeRecording(out, episode.episode_id or "episode", namespace, start, facts=facts)
        try:
            for name, stamp, message in _messages(episode, streams, start):
                data = bytes(message_types().serialize_cdr(message, TOPICS[name]))
                recording.write(f"{namespace.rstrip('/')}/{name}", stamp, data)
            recording.end(start + (len(episode) - 1) * PERIOD, len(episode) - 1, episode.outcome)
            recording.outcome_source = episode.outcome_source
            return recording.close()
        except BaseException:
            recording.discard()
            raise
    except OSError as error:
        raise BagError(f"The bag cannot be written to '{out}': {error.strerror or error}.") from error


def _messages(episode: Episode, images: Mapping[str, Iterator[Picture]], start: int) -> Iterator[tuple[str, int, Any]]:
    """Topic (relative), stamp in ns and message, in the order in which the world node publishes them."""
    make = _Messages(episode)
    commands = commanded_poses(episode)
    last = len(episode) - 1
    for step in range(len(episode)):
        stamp = start + step * PERIOD
        if step % episode.image_stride == 0:
            pictures = {camera: next(images[camera]) for camera in CAMERAS}
            for camera, picture in pictures.items():
                yield f"{camera}/image_raw", stamp, make.image(picture, stamp, f"{camera}_optical_frame")
            for camera, picture in pictures.items():
                yield f"{camera}/camera_info", stamp, make.camera_info(picture, stamp, f"{camera}_optical_frame")
        yield "joint_states", stamp, make.joint_state(step, stamp)
        yield "cartesian_position", stamp, make.pose(step, stamp)
        yield "reward", stamp, make.reward(step, stamp, commands[step])
        yield "episode_status", stamp, make.status(step, stamp, RUNNING)
    state = ABORTED if episode.outcome == "aborted" else FINISHED
    yield "episode_status", start + last * PERIOD, make.status(last, start + last * PERIOD, state)


class _Messages:
    """The messages of an episode's steps."""

    def __init__(self, episode: Episode) -> None:
        self._episode = episode
        self._types: Mapping[str, Any] = message_types().types
        chances = episode.extra.get("success_probability")
        known = isinstance(chances, list) and len(chances) == len(episode)
        self._chances = chances if known and isinstance(chances, list) else [0.0, *episode.reward.tolist()]

    def _header(self, stamp: int, frame: str) -> Any:
        time_type, header = self._types["builtin_interfaces/msg/Time"], self._types["std_msgs/msg/Header"]
        return header(stamp=time_type(sec=stamp // 10**9, nanosec=stamp % 10**9), frame_id=frame)

    def image(self, picture: Picture, stamp: int, frame: str) -> Any:
        height, width = picture.shape[:2]
        return self._types["sensor_msgs/msg/Image"](
            header=self._header(stamp, frame), height=height, width=width, encoding="rgb8", is_bigendian=0,
            step=3 * width, data=np.ascontiguousarray(picture).reshape(-1),
        )  # fmt: skip

    def camera_info(self, picture: Picture, stamp: int, frame: str) -> Any:
        """A camera without calibration, which episodes do not keep: all zero."""
        region = self._types["sensor_msgs/msg/RegionOfInterest"](
            x_offset=0, y_offset=0, height=0, width=0, do_rectify=False
        )
        return self._types["sensor_msgs/msg/CameraInfo"](
            header=self._header(stamp, frame), height=picture.shape[0], width=picture.shape[1], distortion_model="",
            d=np.empty(0), k=np.zeros(9), r=np.zeros(9), p=np.zeros(12), binning_x=0, binning_y=0, roi=region,
        )  # fmt: skip

    def joint_state(self, step: int, stamp: int) -> Any:
        finger = exact_finger(float(self._episode.gripper_position[step, 0]))
        return self._types["sensor_msgs/msg/JointState"](
            header=self._header(stamp, BASE_FRAME), name=[*JOINT_NAMES, *FINGER_NAMES],
            position=np.array([*self._episode.joint_position[step], finger, finger]),
            velocity=np.empty(0), effort=np.empty(0),
        )  # fmt: skip

    def pose(self, step: int, stamp: int) -> Any:
        pose = self._episode.cartesian_position[step]
        x, y, z, w = (float(value) for value in exact_quaternion(pose[3:]))
        types = self._types
        return types["geometry_msgs/msg/PoseStamped"](
            header=self._header(stamp, BASE_FRAME),
            pose=types["geometry_msgs/msg/Pose"](
                position=types["geometry_msgs/msg/Point"](x=float(pose[0]), y=float(pose[1]), z=float(pose[2])),
                orientation=types["geometry_msgs/msg/Quaternion"](x=x, y=y, z=z, w=w),
            ),
        )

    def reward(self, step: int, stamp: int, command: Array) -> Any:
        return self._types["wvl_ros/msg/Reward"](
            header=self._header(stamp, BASE_FRAME), episode_id=self._episode.episode_id, step=step,
            reward=float(self._episode.reward[step - 1]) if step else 0.0,
            success_probability=float(self._chances[step]), commanded_pose=np.asarray(command, np.float64),
        )  # fmt: skip

    def status(self, step: int, stamp: int, state: int) -> Any:
        episode = self._episode
        seed = episode.extra.get("seed", -1)
        return self._types["wvl_ros/msg/EpisodeStatus"](
            header=self._header(stamp, BASE_FRAME), episode_id=episode.episode_id, state=state, step=step,
            max_steps=len(episode) - 1, world=episode.source.rpartition("/")[2], task=episode.task,
            instruction=episode.instruction, source=str(episode.extra.get("started_from", "")),
            seed=seed if isinstance(seed, int) else -1, outcome="" if state == RUNNING else episode.outcome, message="",
        )  # fmt: skip


def exact_finger(gripper: float) -> float:
    """The finger's position in m (0 closed) of a gripper position (0 open .. 1 closed), such that it reads the same.

    A gripper position that came out of a bag always has one; of another, the nearest is given.
    """
    finger = FINGER_TRAVEL * (1.0 - gripper)
    candidates = [finger]
    for direction in (-np.inf, np.inf):
        value = finger
        for _ in range(8):
            value = float(np.nextafter(value, direction))
            candidates.append(value)
    return min(candidates, key=lambda value: abs(min(max(1.0 - value / FINGER_TRAVEL, 0.0), 1.0) - gripper))


def exact_quaternion(euler: Array) -> Array:
    """The quaternion (4,) of extrinsic xyz Euler angles (3,), such that it reads as the same angles to the last bit.

    Neither conversion is exact. For angles that came out of a quaternion there is one, and it is found but for rare
    angles far from the robot's (within a degree or so of gimbal lock); then, as for others, the nearest is given.
    """
    wanted = np.asarray(euler, float)
    rng = np.random.default_rng(0)
    best = found = euler_to_quaternion(wanted)
    smallest, angles = np.inf, wanted
    for attempt in range(_TRIES):
        error = wanted - quaternion_to_euler(found)
        if (total := float(np.abs(error).sum())) < smallest:
            best, smallest = found, total
        if not smallest:
            break
        if attempt < _AIMED:  # off by the error of the last shot
            angles = angles + error
            found = euler_to_quaternion(angles)
        elif attempt % 2:  # around the target
            found = euler_to_quaternion(wanted + rng.uniform(-_SPREAD, _SPREAD, 3))
        else:  # around the best one yet
            found = best + rng.integers(-3, 4, 4) * np.spacing(np.abs(best))
    return best
