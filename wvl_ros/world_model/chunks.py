"""Rollouts of world models that draw several frames in one call: the large ones."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from wvl_ros.errors import ConfigError
from wvl_ros.world_model.imagination import ImaginedFrames
from wvl_ros.world_model.kinematics import Kinematics
from wvl_ros.world_model.tracking import Tracking

Memory = dict[str, Tensor]  # of B rollouts; every tensor's first dimension is the rollout


class Call(NamedTuple):
    """What one call draws for b rollouts: `views` uint8 (b, F, 3, H, W, 3), `reward` logits (b, F), `state` (b, F, 10),
    and the memory for the next call.
    """

    views: Tensor
    reward: Tensor
    state: Tensor
    memory: Memory


class ChunkModel(Protocol):
    """A world model that draws `frames_per_call` frames together, each `actions_per_frame` control steps long.

    Its `config` also holds `success_threshold`, `success_frames` and `sampling_steps`.
    """

    config: Mapping[str, Any]

    @property
    def frames_per_call(self) -> int:
        """New frames a call."""

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Shape of the noise that one rollout's call starts from."""

    def remember(self, views: Tensor, kinematics: Tensor, instructions: Sequence[str]) -> Memory:
        """The memory of rollouts that begin: views uint8 (B, 3, H, W, 3), packed kinematics (B, 39).

        All that stays as it is in a rollout is computed here, once: text embeddings, latents of the first frame.
        """

    def move(self, kinematics: Tensor, actions: Tensor, calibrated: Tensor) -> tuple[Kinematics, Tensor]:
        """As `WorldModel.move`."""

    def imagine(self, memory: Memory, now: Tensor, path: Tensor, noise: Tensor, steps: int) -> Call:
        """Draws the frames at which the arms have packed kinematics `path` (b, F, 39), after `now` (b, 39)."""


class Arm:
    """A model's servo as it is now, on the processor and in float32: poses are small, and bfloat16 knows 3 digits."""

    def __init__(self, tracking: Tracking) -> None:
        if any(parameter.is_meta for parameter in tracking.parameters()):
            return  # a model without weights, made to look at
        self._tracking = copy.deepcopy(tracking).to("cpu", torch.float32).eval()

    def move(self, kinematics: Tensor, actions: Tensor, calibrated: Tensor) -> tuple[Kinematics, Tensor]:
        """See `WorldModel.move`."""
        k, commanded = Kinematics.unpack(kinematics), []
        for i in range(actions.shape[1]):
            k = self._tracking(k, actions[:, i], calibrated)
            commanded.append(k.commanded_state())
        return k, torch.stack(commanded, 1)


class ChunkRollouts:
    """B rollouts of one chunk model, each with a random generator of its own; see `Imagination`.

    A rollout that was stopped, or that has succeeded, is not computed any more: its last frame is given again. What the
    model remembers of a rollout does not grow with its length.

    Args:
        model: in evaluation mode. steps: denoising steps a call; None takes the model's own (`sampling_steps`).
        stop_at_success: whether a rollout ends when the reward head has seen success.
    """

    def __init__(self, model: ChunkModel, *, steps: int | None = None, stop_at_success: bool = True) -> None:
        self.model, self.stop_at_success = model, stop_at_success
        self.steps = int(model.config["sampling_steps"]) if steps is None else steps
        if self.steps < 2:
            raise ConfigError(
                f"A large world model needs at least two denoising steps, not {self.steps}: "
                "the last one reads reward and state."
            )
        self.image_size = (int(model.config["image_height"]), int(model.config["image_width"]))
        self.smallest_image = 64
        self.frames_per_call = model.frames_per_call
        self.actions_per_frame = int(model.config["actions_per_frame"])

    @torch.no_grad()
    def start(
        self, views: Tensor, kinematics: Tensor, instructions: Sequence[str], calibrated: Tensor, seeds: Sequence[int]
    ) -> None:
        """Begins B rollouts from views uint8 (B, 3, H, W, 3) at `image_size` and packed kinematics (B, 39)."""
        if tuple(views.shape[1:]) != (3, *self.image_size, 3):
            raise ConfigError(f"The model sees (3, {self.image_size}, 3) pixels, not {tuple(views.shape[1:])}.")
        batch = len(views)
        self.generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
        self.kinematics = self._base = kinematics.float().clone()
        self.calibrated = calibrated.float()
        self.memory = self.model.remember(views, self.kinematics, instructions)
        self.views = views[:, None].repeat(1, self.frames_per_call, 1, 1, 1, 1).clone()
        self.state = Kinematics.unpack(self.kinematics).state()[:, None].repeat(1, self.frames_per_call, 1)
        self.success_probability = torch.zeros(batch, self.frames_per_call)
        self.active = torch.ones(batch, dtype=torch.bool)
        self.success = torch.zeros(batch, dtype=torch.bool)
        self._run = torch.zeros(batch, dtype=torch.long)
        self._path: list[Tensor] = []
        self._moves = 0

    def stop(self, which: Tensor) -> None:
        """Ends the rollouts marked in `which` (B,) bool."""
        self.active &= ~which

    @torch.no_grad()
    def move(self, actions: Tensor) -> Tensor:
        """One control step of all arms under `actions` (B, 7); returns packed kinematics (B, 39)."""
        if self.frame_due:
            raise ConfigError(f"The call's {self._moves} control steps are complete: call imagine() first.")
        moved = self.model.move(self.kinematics, actions.float()[:, None], self.calibrated)[0].pack()
        self.kinematics = torch.where(self.active[:, None], moved, self.kinematics)
        self._moves += 1
        if self._moves % self.actions_per_frame == 0:
            self._path.append(self.kinematics)
        return self.kinematics

    @property
    def frame_due(self) -> bool:
        """Whether a call's control steps are complete, so that `imagine` can be called."""
        return self._moves == self.frames_per_call * self.actions_per_frame

    @torch.no_grad()
    def imagine(self) -> ImaginedFrames:
        """The frames of the control steps since the last call."""
        needed = self.frames_per_call * self.actions_per_frame
        if not self.frame_due:
            raise ConfigError(f"A call is made of {needed} control steps, but {self._moves} were taken.")
        path = torch.stack(self._path, 1)
        self._path, self._moves = [], 0
        rows = self.active.nonzero()[:, 0]
        # A rollout that stands still shows its last frame.
        last = torch.full((1,), self.frames_per_call - 1)
        self.views, self.state = (x.index_select(1, last).expand_as(x).clone() for x in (self.views, self.state))
        self.success_probability = self.success_probability[:, -1:].repeat(1, self.frames_per_call)
        valid = torch.zeros(len(path), self.frames_per_call, dtype=torch.bool)
        if len(rows):
            noise = torch.stack([torch.randn(self.model.noise_shape, generator=self.generators[i]) for i in rows])
            memory = {name: tensor[rows.to(tensor.device)] for name, tensor in self.memory.items()}
            call = self.model.imagine(memory, self._base[rows], path[rows], noise, self.steps)
            for name, tensor in call.memory.items():
                # A copy: what a caller still holds of the last call must not change under him.
                updated = self.memory[name].clone()
                updated[rows.to(tensor.device)] = tensor
                self.memory[name] = updated
            self._take(rows, call, path, valid)
        self._base = self.kinematics
        return ImaginedFrames(self.views, self.success_probability, self.state, self.kinematics, valid)

    def _take(self, rows: Tensor, call: Call, path: Tensor, valid: Tensor) -> None:
        """Takes over a call's frames up to each rollout's first success; the frames after it repeat that one."""
        probability, state = torch.sigmoid(call.reward.float()).cpu(), call.state.float().cpu()
        views = call.views.cpu()
        high = probability > float(self.model.config["success_threshold"])
        needed = int(self.model.config["success_frames"])
        kept = []
        for i, row in enumerate(rows.tolist()):
            run, end = int(self._run[row]), self.frames_per_call - 1
            for t in range(self.frames_per_call):
                run = run + 1 if high[i, t] else 0
                if run >= needed:
                    self.success[row] = True
                    if self.stop_at_success:
                        end = t
                        break
            self._run[row] = run
            index = torch.arange(self.frames_per_call).clamp(max=end)
            self.views[row], self.state[row] = views[i, index], state[i, index]
            self.success_probability[row] = probability[i, index]
            valid[row, : end + 1] = True
            kept.append(path[row, end])
        arms = Kinematics.unpack(torch.stack(kept))
        # Only images tell what the gripper holds; all else follows the commands.
        self.kinematics = self.kinematics.clone()
        self.kinematics[rows] = arms._replace(gripper=self.state[rows, -1, 9:].clamp(0, 1)).pack()
        if self.stop_at_success:
            self.active &= ~self.success
