"""Many imagined rollouts at once behind Gymnasium's vector interface: for practice."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from wvl_ros.checkpoints import find
from wvl_ros.errors import ConfigError
from wvl_ros.sans.episode import Episode
from wvl_ros.world_model import patches
from wvl_ros.world_model.imagination import ImaginedFrames, imagination
from wvl_ros.world_model.kinematics import Kinematics
from wvl_ros.world_model.loading import load_world_model
from wvl_ros.worlds import droid
from wvl_ros.worlds.imagined import ImaginedWorld
from wvl_ros.worlds.imagined_start import Start, find_start, fresh_episode
from wvl_ros.worlds.interface import Observation, World

if TYPE_CHECKING:
    from diffusers.models.modeling_utils import ModelMixin


class ImaginedWorlds(VectorEnv):
    """B rollouts of the world model, each with a start and a seed of its own: the same seed imagines the same.

    Observations are those of `ImaginedWorld` with the rollout as first dimension, but without `joint_position`, which
    no image depends on. Actions are (B, 7) absolute commanded flange poses (m, rad) and gripper commands 0..1. A
    rollout ends with the reward head's success (threshold and run of frames stand in the checkpoint's configuration) or
    at its last step; it then stands still, costs nothing and gives no reward, until all are reset together.

    `reset(seed=, options=)` understands the options `source`: an `Episode` or one for each rollout; `start`: a step of
    it, or one for each (starts near where failures happened help, WoVR); `task`, `instruction`. Without a source, all
    start from fresh resets of the tabletop.

    Args:
        num_envs: B. checkpoint: a shipped name or a folder; or a `model` that is loaded already.
        image_height, image_width: of the observations; None takes the model's own, which costs nothing.
        max_steps: control steps before truncation; None takes each start's own limit.
        steps: denoising steps a call; None takes the model's own. task: of a fresh reset that names none.

    Raises:
        CheckpointError: no such checkpoint, its weights are missing, or it is of another architecture.
    """

    metadata: ClassVar[dict[str, Any]] = {"autoreset_mode": AutoresetMode.DISABLED, "render_fps": droid.CONTROL_HZ}

    def __init__(
        self,
        num_envs: int,
        checkpoint: str | Path = "small",
        image_height: int | None = None,
        image_width: int | None = None,
        max_steps: int | None = None,
        *,
        model: ModelMixin | None = None,
        steps: int | None = None,
        task: str = "pick_place",
    ) -> None:
        if num_envs < 1:
            raise ConfigError(f"num_envs must be at least 1, but is {num_envs}.")
        self.model = model if model is not None else load_world_model(find("world_model", checkpoint))
        self._rollouts = imagination(self.model, steps=steps)
        height, width = self._rollouts.image_size
        one = ImaginedWorld(model=self.model, image_height=image_height or height, image_width=image_width or width)
        self._size = one.image_height, one.image_width
        self.single_action_space = one.action_space
        space = {name: part for name, part in one.observation_space.items() if name != "joint_position"}
        self.single_observation_space = type(one.observation_space)(space)
        self.num_envs, self._fixed_max_steps, self._task = num_envs, max_steps, task
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self._tabletop: World | None = None
        self.last_call: ImaginedFrames | None = None
        self._starts: list[Start] = []

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Starts all rollouts; `seed` s gives them the seeds s, s + 1, ...

        Raises:
            ConfigError: not as many seeds, sources or starts as rollouts. EpisodeError, ObservationError: as
                `ImaginedWorld.reset`.
        """
        options = dict(options or {})
        seeds = self._seeds(seed)
        steps = [int(step or 0) for step in self._each(options.get("start"), "start")]
        sources = self._each(options.get("source"), "source")
        sources = [
            self._fresh(s, options) if source is None else source for source, s in zip(sources, seeds, strict=True)
        ]
        words = {name: str(options.get(name) or "") for name in ("instruction", "task")}
        rig = str(self.model.config["rig"])
        self._starts = [
            find_start(source, step, self._rollouts, rig, **words) for source, step in zip(sources, steps, strict=True)
        ]
        limits = [self._fixed_max_steps or start.max_steps for start in self._starts]
        self.max_steps: NDArray[np.int64] = np.array(limits)
        views = np.stack([start.views for start in self._starts])
        self._rollouts.start(
            torch.from_numpy(views),
            torch.cat([start.kinematics for start in self._starts]),
            [start.instruction for start in self._starts],
            torch.tensor([float(start.calibrated) for start in self._starts]),
            seeds,
        )
        self.step_count, self.last_call = 0, None
        self._ended = np.zeros(self.num_envs, bool)
        self._chances = np.zeros(self.num_envs)
        self._show(views)
        return self._observe(), self._info(np.zeros(self.num_envs, bool))

    def step(
        self, actions: NDArray[np.float64]
    ) -> tuple[Observation, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """One control step of all: observations, rewards, terminations, truncations (B,), infos.

        Raises:
            ActionError: an action that is no pose.
        """
        if not self._starts:
            raise ConfigError("Call reset() before step().")
        poses = np.stack([droid.check_action(action, "cartesian_position") for action in actions])
        if len(poses) != self.num_envs:
            raise ConfigError(f"There are {self.num_envs} rollouts, but {len(poses)} actions.")
        self._rollouts.move(torch.from_numpy(poses))
        self.step_count += 1
        before = self._rollouts.success.numpy().copy()
        if self._rollouts.frame_due:
            self.last_call = frames = self._rollouts.imagine()
            self._show(frames.views[:, -1].numpy())
            self._chances = frames.success_probability[:, -1].numpy().astype(float)
        terminated = self._rollouts.success.numpy() & ~before & ~self._ended
        truncated = ~terminated & ~self._ended & (self.step_count >= self.max_steps)
        self._ended |= terminated | truncated
        self._rollouts.stop(torch.from_numpy(self._ended))
        return self._observe(), terminated.astype(float), terminated, truncated, self._info(terminated)

    def close_extras(self, **kwargs: Any) -> None:
        """Frees the tabletop's renderer, where a fresh reset has made one."""
        if self._tabletop is not None:
            self._tabletop.close()
            self._tabletop = None

    def _seeds(self, seed: int | Sequence[int | None] | None) -> list[int]:
        if seed is None or isinstance(seed, int):
            first = secrets.randbelow(2**31) if seed is None else seed
            return [first + i for i in range(self.num_envs)]
        if len(seed) != self.num_envs:
            raise ConfigError(f"There are {self.num_envs} rollouts, but {len(seed)} seeds.")
        return [secrets.randbelow(2**31) if s is None else int(s) for s in seed]

    def _each(self, value: Any, name: str) -> list[Any]:
        values = list(value) if isinstance(value, (list, tuple, np.ndarray)) else [value] * self.num_envs
        if len(values) != self.num_envs:
            raise ConfigError(f"There are {self.num_envs} rollouts, but {len(values)} of the option '{name}'.")
        return values

    def _fresh(self, seed: int, options: dict[str, Any]) -> Episode:
        if self._tabletop is None:
            from wvl_ros.worlds.tabletop import TabletopWorld

            self._tabletop = TabletopWorld(self._task, 128, 128)
        return fresh_episode(self._tabletop, seed, {"task": self._task} | {k: v for k, v in options.items() if v})

    def _show(self, views: NDArray[np.uint8]) -> None:
        count = len(droid.CAMERAS)
        shown = patches.resize(views.reshape(-1, *views.shape[2:]), *self._size)
        self._images = shown.reshape(self.num_envs, count, *self._size, 3)

    def _observe(self) -> Observation:
        k = Kinematics.unpack(self._rollouts.kinematics.double())
        turns = np.stack([droid.matrix_to_euler(rotation) for rotation in k.rotation.numpy()])
        return {
            **{camera: self._images[:, i].copy() for i, camera in enumerate(droid.CAMERAS)},
            "cartesian_position": np.hstack([k.position.numpy(), turns]),
            "gripper_position": np.clip(k.gripper.numpy(), 0.0, 1.0),
        }

    def _info(self, success: NDArray[np.bool_]) -> dict[str, Any]:
        k = Kinematics.unpack(self._rollouts.kinematics.double())
        turns = np.stack([droid.matrix_to_euler(rotation) for rotation in k.commanded_rotation.numpy()])
        return {
            "task": [start.task for start in self._starts],
            "instruction": [start.instruction for start in self._starts],
            "step": np.full(self.num_envs, self.step_count),
            "commanded_pose": np.hstack([k.commanded_position.numpy(), turns, k.gripper_command.numpy()]),
            "success": success.copy(),
            "success_probability": self._chances.copy(),
            "active": ~self._ended,
        }
