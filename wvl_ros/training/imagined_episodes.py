"""Imagined rollouts as episodes: what a policy did in the world model, and recorded episodes imagined once more."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wvl_ros.sans.episode import Episode
from wvl_ros.world_model.imagination import Imagination, ImaginedFrames
from wvl_ros.world_model.kinematics import Kinematics
from wvl_ros.worlds import droid
from wvl_ros.worlds.imagined_start import Start, find_start
from wvl_ros.worlds.recorded import commanded_poses

_IK_STEPS = 4


class Recorder:
    """An `Imagination` that keeps all it has shown since its `start`, to make episodes of it."""

    def __init__(self, inner: Imagination) -> None:
        self._inner = inner
        self.image_size, self.smallest_image = inner.image_size, inner.smallest_image
        self.frames_per_call, self.actions_per_frame = inner.frames_per_call, inner.actions_per_frame

    def start(
        self, views: Tensor, kinematics: Tensor, instructions: Sequence[str], calibrated: Tensor, seeds: Sequence[int]
    ) -> None:
        """See `Imagination.start`."""
        self._inner.start(views, kinematics, instructions, calibrated, seeds)
        self._first, self._seeds = views, list(seeds)
        self._actions: list[Tensor] = []
        self._arms, self._calls = [kinematics], list[ImaginedFrames]()

    def move(self, actions: Tensor) -> Tensor:
        """See `Imagination.move`."""
        self._actions.append(actions)
        self._arms.append(self._inner.move(actions))
        return self._arms[-1]

    def imagine(self) -> ImaginedFrames:
        """See `Imagination.imagine`."""
        self._calls.append(self._inner.imagine())
        self._arms[-1] = self._calls[-1].kinematics
        return self._calls[-1]

    def stop(self, which: Tensor) -> None:
        """See `Imagination.stop`."""
        self._inner.stop(which)

    @property
    def kinematics(self) -> Tensor:
        """See `Imagination.kinematics`."""
        return self._inner.kinematics

    @property
    def success(self) -> Tensor:
        """See `Imagination.success`."""
        return self._inner.success

    @property
    def active(self) -> Tensor:
        """See `Imagination.active`."""
        return self._inner.active

    @property
    def frame_due(self) -> bool:
        """See `Imagination.frame_due`."""
        return self._inner.frame_due

    def episodes(
        self, rows: Sequence[int], starts: Sequence[Start], policy: str = "", world_model: str = ""
    ) -> list[Episode]:
        """Some of the rollouts, each to the last frame that was drawn of it; nobody has judged them yet.

        `extra["success_probability"]` holds what the reward head said of each frame.

        Args:
            rows: of the rollouts. starts: of all of them. policy, world_model: names.
        """
        count = len(self._first)  # nothing may have been drawn: all rollouts were shorter than a frame
        valid = torch.cat([torch.zeros(count, 0, dtype=torch.bool), *(call.valid for call in self._calls)], 1)
        views = torch.cat([self._first[:, None][:, :0], *(call.views for call in self._calls)], 1)
        chances = torch.cat([torch.zeros(count, 0), *(call.success_probability for call in self._calls)], 1)
        return [
            self._episode(row, starts[row], int(valid[row].sum()), views[row], chances[row], policy, world_model)
            for row in rows
        ]

    def _episode(
        self, row: int, start: Start, frames: int, views: Tensor, chances: Tensor, policy: str, world_model: str
    ) -> Episode:
        steps = frames * self.actions_per_frame
        arm = Kinematics.unpack(torch.stack([k[row] for k in self._arms[: steps + 1]]).double())
        turns = np.stack([droid.matrix_to_euler(rotation) for rotation in arm.rotation.numpy()])
        poses = np.hstack([arm.position.numpy(), turns])
        poses[0] = start.pose
        seen = torch.cat([self._first[row][None], views[:frames]]).numpy()
        commands = [action[row].double().numpy() for action in self._actions[:steps]]
        return Episode(
            images={camera: np.ascontiguousarray(seen[:, i]) for i, camera in enumerate(droid.CAMERAS)},
            joint_position=_joints(poses, start.joints),
            cartesian_position=poses,
            gripper_position=arm.gripper.numpy().clip(0.0, 1.0),
            action=np.stack(commands) if commands else np.empty((0, 7)),
            reward=np.zeros(steps, np.float32),
            task=start.task,
            instruction=start.instruction,
            source="policy/imagined",
            policy=policy,
            world_model=world_model,
            image_stride=self.actions_per_frame,
            commanded_start=_commanded(self._arms[0][row]),
            extra={
                "seed": self._seeds[row],
                "success_probability": [round(float(chance), 5) for chance in chances[:frames]],
            },
        )


def replay(imagination: Imagination, episodes: Sequence[Episode], rig: str, batch: int = 48) -> list[Episode]:
    """Recorded episodes imagined once more, from their first observations by their recorded actions.

    What a judge says of these, beside how the recorded ones truly ended, is how far it and the world model can be
    trusted together.
    """
    recorder, results = Recorder(imagination), list[Episode]()
    call = imagination.frames_per_call * imagination.actions_per_frame
    for first in range(0, len(episodes), batch):
        some = episodes[first : first + batch]
        starts = [find_start(episode, 0, imagination, rig) for episode in some]
        paths = [commanded_poses(episode)[1:] for episode in some]
        recorder.start(
            torch.stack([torch.from_numpy(start.views) for start in starts]),
            torch.cat([start.kinematics for start in starts]),
            [start.instruction for start in starts],
            torch.tensor([float(start.calibrated) for start in starts]),
            list(range(first, first + len(some))),
        )
        whole = torch.tensor([len(path) // call * call for path in paths])
        recorder.stop(whole == 0)
        for step in range(int(whole.max())):
            actions = np.stack([path[min(step, len(path) - 1)] for path in paths])
            recorder.move(torch.from_numpy(actions))
            if recorder.frame_due:
                recorder.imagine()
                recorder.stop(whole <= step + 1)
        results += recorder.episodes(range(len(some)), starts)
    return results


def _joints(poses: NDArray[np.float64], first: NDArray[np.float64]) -> NDArray[np.float64]:
    """Joints (N, 7) that hold the flange at poses (N, 6), from the first ones on."""
    joints = [np.array(first, float)]
    for pose in poses[1:]:
        joints.append(droid.inverse_kinematics(pose, joints[-1], iterations=_IK_STEPS))
    return np.stack(joints)


def _commanded(kinematics: Tensor) -> NDArray[np.float64]:
    k = Kinematics.unpack(kinematics[None].double())
    turn = droid.matrix_to_euler(k.commanded_rotation[0].numpy())
    return np.concatenate([k.commanded_position[0].numpy(), turn, k.gripper_command[0].numpy()])
