"""The imagined world: one rollout of the video world model behind the interface of every world."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from wvl_ros.checkpoints import find
from wvl_ros.errors import ConfigError
from wvl_ros.sans.episode import Episode
from wvl_ros.world_model import patches
from wvl_ros.world_model.imagination import ImaginedFrames, imagination
from wvl_ros.world_model.kinematics import Kinematics
from wvl_ros.world_model.loading import load_world_model
from wvl_ros.worlds import droid
from wvl_ros.worlds.imagined_start import MAX_STEPS, find_start, fresh_episode
from wvl_ros.worlds.interface import Observation, World

if TYPE_CHECKING:
    from diffusers.models.modeling_utils import ModelMixin

_IK_STEPS = 5


class ImaginedWorld(World):
    """The world model as a world. See `World` for observations, actions and `info`.

    The arm moves at every control step; the images change at every third one, as a frame needs its three actions, and
    with a large model at every twelfth, as a call draws several frames (`last_call` holds all of them). An
    episode starts from a recorded one (`source`, `start`) or, without a source, from a fresh reset of the tabletop with
    the
    same seed. It ends with success when the reward head says so (threshold and run of frames stand in the checkpoint's
    configuration).

    Args:
        checkpoint: a shipped name or a folder; or a `model` that is loaded already.
        image_height, image_width: of the observations; what the model draws is scaled to it.
        max_steps: control steps before truncation; None takes the task's own limit, and of an episode whose task is not
            the tabletop's what is left of it. steps: denoising steps a call; None takes the model's own.
        task: of a fresh reset that names none. action_space: any of DROID's four.

    Raises:
        CheckpointError: no such checkpoint, its weights are missing, or it is of another architecture.
    """

    def __init__(
        self,
        checkpoint: str | Path = "small",
        image_height: int = 128,
        image_width: int = 128,
        max_steps: int | None = None,
        *,
        model: ModelMixin | None = None,
        steps: int | None = None,
        task: str = "pick_place",
        action_space: droid.ActionSpace = "cartesian_position",
    ) -> None:
        super().__init__(image_height, image_width, max_steps or MAX_STEPS, action_space)
        self._fixed_max_steps = max_steps
        self.model = model if model is not None else load_world_model(find("world_model", checkpoint))
        self._rollout = imagination(self.model, steps=steps)
        self.last_call: ImaginedFrames | None = None
        self._task, self._started = task, False
        self._tabletop: World | None = None

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks of a fresh reset; an episode as the source may hold any other."""
        from wvl_ros.worlds.tasks import TASKS

        return tuple(TASKS)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Starts a rollout from the options `source` (an `Episode`) and `start`, or from a fresh tabletop: `task`,
        `instruction`.

        Raises:
            ObservationError: the source lacks a camera, or its images are smaller than the model's.
            EpisodeError: `start` lies outside the source.
        """
        super().reset(seed=seed)
        options = dict(options or {})
        noise_seed = int(self.np_random.integers(2**31)) if seed is None else seed
        source = options.get("source")
        episode, step = (self._fresh(noise_seed, options), 0) if source is None else (source, options.get("start") or 0)
        words = {name: str(options.get(name) or "") for name in ("instruction", "task")}
        start = find_start(episode, int(step), self._rollout, str(self.model.config["rig"]), **words)
        self._instruction, self._task_name = start.instruction, start.task
        self.max_steps = self._fixed_max_steps or start.max_steps
        self._calibrated = start.calibrated
        self._rollout.start(
            torch.from_numpy(start.views)[None],
            start.kinematics,
            [start.instruction],
            torch.tensor([float(start.calibrated)]),
            [noise_seed],
        )
        self._joints = self._commanded_joints = start.joints
        self._images = {
            camera: patches.resize(start.images[camera][None], self.image_height, self.image_width)[0]
            for camera in droid.CAMERAS
        }
        self.step_count, self._started, self.last_call = 0, True, None
        return self._observe(start.pose), self._info(False, "")

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """One control step; see `World.step`. Reward and success are the reward head's, at each new frame."""
        if not self._started:
            raise ConfigError("Call reset() before step().")
        self._rollout.move(torch.from_numpy(self._as_pose(action))[None])
        self.step_count += 1
        success = False
        if self._rollout.frame_due:
            self.last_call = self._rollout.imagine()
            scaled = patches.resize(self.last_call.views[0, -1].numpy(), self.image_height, self.image_width)
            self._images = dict(zip(droid.CAMERAS, scaled, strict=True))
            success = bool(self._rollout.success[0])
        truncated = not success and self.step_count >= self.max_steps
        outcome = "success" if success else "failure" if truncated else ""
        if success or truncated:
            self._rollout.stop(torch.ones(1, dtype=torch.bool))
        return self._observe(), float(success), success, truncated, self._info(success, outcome)

    def camera_info(self, camera: str) -> NDArray[np.float64]:
        """The pinhole matrix K (3, 3) in pixels of a camera; zeros when the running episode's cameras are not
        calibrated.
        """
        calibration = self.model.config["cameras"][droid.CAMERAS.index(camera)]
        if calibration is None or (self._started and not self._calibrated):
            return np.zeros((3, 3))
        focal = self.image_height / 2 / np.tan(np.deg2rad(calibration["fovy_deg"]) / 2)
        return np.array([[focal, 0.0, self.image_width / 2], [0.0, focal, self.image_height / 2], [0.0, 0.0, 1.0]])

    def render(self) -> NDArray[np.uint8]:
        """The three cameras side by side, uint8 (H, 3 W, 3)."""
        return np.hstack([self._images[camera] for camera in droid.CAMERAS])

    def close(self) -> None:
        """Frees the tabletop's renderer, where a fresh reset has made one (in the thread that reset)."""
        if self._tabletop is not None:
            self._tabletop.close()
            self._tabletop = None

    def _fresh(self, seed: int, options: dict[str, Any]) -> Episode:
        """A fresh tabletop reset as an episode of one observation."""
        from wvl_ros.worlds.tabletop import TabletopWorld

        if self._tabletop is None:
            self._tabletop = TabletopWorld(self._task, 128, 128)
        return fresh_episode(self._tabletop, seed, {"task": self._task} | {k: v for k, v in options.items() if v})

    def _as_pose(self, action: np.ndarray) -> NDArray[np.float64]:
        if self.action_space_name == "cartesian_position":
            return droid.check_action(action, "cartesian_position")
        pose = self._commanded_pose()
        target = droid.convert_chunk(
            np.asarray(action, float)[None],
            self.action_space_name,
            "cartesian_position",
            self._commanded_joints,
            pose[:6],
        )[0]
        self._commanded_joints = droid.inverse_kinematics(target[:6], self._commanded_joints, iterations=_IK_STEPS)
        return target

    def _observe(self, pose: NDArray[np.float64] | None = None) -> Observation:
        k = Kinematics.unpack(self._rollout.kinematics)
        if pose is None:
            turn = droid.matrix_to_euler(k.rotation[0].double().numpy())
            pose = np.concatenate([k.position[0].double().numpy(), turn])
            self._joints = droid.inverse_kinematics(pose, self._joints, iterations=_IK_STEPS)
        return {
            **{camera: image.copy() for camera, image in self._images.items()},
            "joint_position": self._joints.copy(),
            "cartesian_position": np.array(pose, float),
            "gripper_position": np.clip(k.gripper[0].double().numpy(), 0.0, 1.0),
        }

    def _commanded_pose(self) -> NDArray[np.float64]:
        k = Kinematics.unpack(self._rollout.kinematics)
        turn = droid.matrix_to_euler(k.commanded_rotation[0].double().numpy())
        return np.concatenate([k.commanded_position[0].double().numpy(), turn, k.gripper_command[0].double().numpy()])

    def _info(self, success: bool, outcome: str) -> dict[str, Any]:
        return {
            "task": self._task_name,
            "instruction": self._instruction,
            "step": self.step_count,
            "commanded_pose": self._commanded_pose(),
            "success": success,
            "success_probability": float(self.last_call.success_probability[0, -1]) if self.last_call else 0.0,
            "outcome": outcome,
        }
