"""The `Episode`: the one currency between worlds, bags, SANS and trainers."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from wvl_ros.errors import EpisodeError
from wvl_ros.worlds.droid import ACTION_DIMS, CAMERAS, CONTROL_HZ

FORMAT = "wvl_ros episode 1"
OUTCOMES = ("", "success", "near_success", "failure", "aborted")
_ARRAYS = ("joint_position", "cartesian_position", "gripper_position", "action", "reward")
_TEXTS = ("task", "instruction", "action_space", "outcome", "source", "episode_id")
_LATER_TEXTS = ("outcome_source", "policy", "world_model")  # files of before have none


@dataclass
class Episode:
    """One recorded, simulated or imagined episode: N observations and the N - 1 actions between them.

    Attributes:
        images: camera name -> uint8 (M, H, W, 3) RGB, taken at steps 0, s, 2s, ... with s = `image_stride`.
        joint_position: float64 (N, 7) rad. cartesian_position: float64 (N, 6) flange pose.
        gripper_position: float64 (N, 1), 0 open .. 1 closed.
        action: float64 (N - 1, D), as executed, of `action_space`; row t leads from observation t to t + 1.
        reward: float32 (N - 1,); row t belongs to observation t + 1: 1 in a success state, else 0.
        outcome: '' (unknown), 'success', 'near_success', 'failure' or 'aborted'.
        outcome_source: who says so: 'world', 'operator', 'reward_model', 'dataset', or '' when nobody did.
        source: who acted and where, for instance 'expert/tabletop', 'policy/imagined', 'teleop/droid'.
        policy, world_model: names of the checkpoints that acted and imagined; '' for none.
        iteration: of the improvement loop in which it was recorded, 0 before the first.
        commanded_start: float64 (7,), the pose and gripper command in force before the first action; the first measured
            state where it is not known.
        extra: further facts that fit into JSON (seed, checkpoint, ...).
    """

    images: dict[str, NDArray[np.uint8]]
    joint_position: NDArray[np.float64]
    cartesian_position: NDArray[np.float64]
    gripper_position: NDArray[np.float64]
    action: NDArray[np.float64]
    reward: NDArray[np.float32]
    task: str
    instruction: str
    outcome: str = ""
    outcome_source: str = ""
    source: str = ""
    policy: str = ""
    world_model: str = ""
    iteration: int = 0
    episode_id: str = ""
    action_space: str = "cartesian_position"
    fps: float = float(CONTROL_HZ)
    image_stride: int = 1
    commanded_start: NDArray[np.float64] | None = None
    extra: dict[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.joint_position)
        if n < 1:
            raise EpisodeError("An episode needs at least one observation.")
        if self.action_space not in ACTION_DIMS:
            raise EpisodeError(f"An episode's action space cannot be '{self.action_space}'.")
        if self.iteration < 0:
            raise EpisodeError(f"An episode's iteration cannot be {self.iteration}; it counts from 0.")
        if self.outcome not in OUTCOMES:
            raise EpisodeError(f"An episode's outcome cannot be '{self.outcome}'; use one of {OUTCOMES[1:]}.")
        expected = {
            "joint_position": (n, 7),
            "cartesian_position": (n, 6),
            "gripper_position": (n, 1),
            "action": (n - 1, ACTION_DIMS[self.action_space]),
            "reward": (n - 1,),
        }
        for name, shape in expected.items():
            got = getattr(self, name).shape
            if got != shape:
                raise EpisodeError(f"An episode's {name} should have the shape {shape}, but has {got}.")
        for name in _ARRAYS:
            if not np.isfinite(getattr(self, name)).all():
                raise EpisodeError(f"An episode's {name} holds NaN or infinity.")
        frames = (n - 1) // self.image_stride + 1
        for camera, stack in self.images.items():
            if stack.dtype != np.uint8 or stack.ndim != 4 or stack.shape[3] != 3:
                raise EpisodeError(
                    f"Images of '{camera}' should be uint8 (M, H, W, 3), but are {stack.dtype} {stack.shape}."
                )
            if len(stack) != frames:
                raise EpisodeError(f"Camera '{camera}' has {len(stack)} images where {n} steps call for {frames}.")
        if self.commanded_start is None:
            self.commanded_start = np.concatenate([self.cartesian_position[0], self.gripper_position[0]])

    def __len__(self) -> int:
        """Number of observations, N."""
        return len(self.joint_position)

    @property
    def success(self) -> bool:
        """Whether the outcome is 'success'."""
        return self.outcome == "success"

    def observation(self, step: int) -> dict[str, np.ndarray]:
        """The observation of a step in the form a `World` gives it, with the latest images up to that step.

        Raises:
            EpisodeError: the step lies outside the episode, or a camera is missing.
        """
        if not 0 <= step < len(self):
            raise EpisodeError(f"The episode has steps 0 to {len(self) - 1}; step {step} was asked for.")
        missing = [camera for camera in CAMERAS if camera not in self.images]
        if missing:
            raise EpisodeError(
                f"The episode lacks the camera '{missing[0]}'; it has: {', '.join(self.images) or 'none'}."
            )
        images = {camera: self.images[camera][step // self.image_stride] for camera in CAMERAS}
        return images | {
            name: getattr(self, name)[step] for name in ("joint_position", "cartesian_position", "gripper_position")
        }

    def save(self, path: Path | str) -> None:
        """Writes the episode to one safetensors file, whole or not at all."""
        path = Path(path)
        tensors = {name: np.ascontiguousarray(getattr(self, name)) for name in (*_ARRAYS, "commanded_start")}
        tensors |= {f"images.{camera}": np.ascontiguousarray(stack) for camera, stack in self.images.items()}
        meta = {name: getattr(self, name) for name in (*_TEXTS, *_LATER_TEXTS)}
        meta |= {"format": FORMAT, "fps": repr(self.fps), "image_stride": str(self.image_stride)}
        meta["iteration"] = str(self.iteration)
        meta["extra"] = json.dumps(self.extra)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            save_file(tensors, part, metadata=meta)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path | str, *, images: bool = True) -> Episode:
        """Reads what `save` wrote, with or without the images.

        Raises:
            EpisodeError: no such file, or not an episode.
        """
        path = Path(path)
        try:
            with safe_open(path, framework="numpy") as file:
                meta = file.metadata() or {}
                if meta.get("format") != FORMAT:
                    raise EpisodeError(f"'{path}' is not an episode of wvl_ros (format: {meta.get('format', 'none')}).")
                names = [name for name in file.keys() if images or not name.startswith("images.")]  # noqa: SIM118
                arrays = {name: file.get_tensor(name) for name in names}
        except (OSError, SafetensorError) as error:
            raise EpisodeError(f"'{path}' cannot be read as an episode: {error}") from error
        try:
            return cls(
                images={name.removeprefix("images."): a for name, a in arrays.items() if name.startswith("images.")},
                **{name: arrays[name] for name in (*_ARRAYS, "commanded_start")},
                **{name: meta[name] for name in _TEXTS},
                **{name: meta.get(name, "") for name in _LATER_TEXTS},
                iteration=int(meta.get("iteration", 0)),
                fps=float(meta["fps"]),
                image_stride=int(meta["image_stride"]),
                extra=json.loads(meta["extra"]),
            )
        except (KeyError, ValueError) as error:
            raise EpisodeError(f"'{path}' is a damaged episode: {error}") from error
