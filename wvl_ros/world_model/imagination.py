"""What a world model of any size offers to those who imagine with it: `Imagination`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from wvl_ros.world_model import patches
from wvl_ros.world_model.kinematics import Kinematics
from wvl_ros.world_model.model import WorldModel
from wvl_ros.world_model.rollout import Rollouts

if TYPE_CHECKING:
    from diffusers.models.modeling_utils import ModelMixin


@dataclass
class ImaginedFrames:
    """The F frames of one call, of B rollouts. On the processor, whatever device the model is on.

    `views` uint8 (B, F, 3, H, W, 3) RGB; `success_probability` float32 (B, F); `state` float32 (B, F, 10), see
    `Kinematics.state`; `kinematics` packed (B, 39) after the last frame; `valid` (B, F) bool: False for what repeats an
    earlier frame, since the rollout had succeeded or was stopped.
    """

    views: Tensor
    success_probability: Tensor
    state: Tensor
    kinematics: Tensor
    valid: Tensor


class Imagination(Protocol):
    """B rollouts of one world model, each with a seed of its own: the same seed imagines the same, alone or in a batch.

    `start`, then `move` for each control step; when `frame_due`, `imagine` draws the frames of the steps since the last
    call. A rollout that succeeds (threshold and run of frames in the model's configuration) or that is stopped is not
    computed any more.
    """

    image_size: tuple[int, int]  # height and width of the views, in pixels
    smallest_image: int  # pixels along the shorter side of an image that is good enough to start from
    frames_per_call: int
    actions_per_frame: int  # control steps (1/15 s) from frame to frame

    def start(
        self, views: Tensor, kinematics: Tensor, instructions: Sequence[str], calibrated: Tensor, seeds: Sequence[int]
    ) -> None:
        """Begins B rollouts.

        Args:
            views: uint8 (B, 3, H, W, 3) at `image_size`: exterior 1, exterior 2, wrist.
            kinematics: packed (B, 39). instructions: B texts. seeds: B integers.
            calibrated: (B,) 1 where the images come from the cameras of the model's rig, else 0.
        """

    def move(self, actions: Tensor) -> Tensor:
        """One control step of all arms under `actions` (B, 7); returns packed kinematics (B, 39)."""

    @property
    def kinematics(self) -> Tensor:
        """Packed (B, 39), after the last control step."""

    @property
    def success(self) -> Tensor:
        """(B,) bool: has succeeded."""

    @property
    def active(self) -> Tensor:
        """(B,) bool: goes on."""

    @property
    def frame_due(self) -> bool:
        """Whether a call's control steps are complete."""

    def imagine(self) -> ImaginedFrames:
        """The frames of the control steps since the last call."""

    def stop(self, which: Tensor) -> None:
        """Ends the rollouts marked in `which` (B,) bool."""


class PatchImagination:
    """`Imagination` of the small world model, which draws one frame a call as patches; see `Rollouts`."""

    def __init__(self, model: WorldModel, *, steps: int | None = None, stop_at_success: bool = True) -> None:
        self._rollouts = Rollouts(model, steps=1 if steps is None else steps, stop_at_success=stop_at_success)
        self._patch, size = int(model.config["patch"]), int(model.config["image_size"])
        self.image_size, self.smallest_image = (size, size), size
        self.frames_per_call, self.actions_per_frame = 1, int(model.config["actions_per_frame"])

    def start(
        self, views: Tensor, kinematics: Tensor, instructions: Sequence[str], calibrated: Tensor, seeds: Sequence[int]
    ) -> None:
        """See `Imagination.start`."""
        frames = patches.to_tensor(patches.to_patches(views.numpy(), self._patch))
        self._rollouts.start(frames, kinematics, instructions, calibrated, seeds)

    def move(self, actions: Tensor) -> Tensor:
        """See `Imagination.move`."""
        return self._rollouts.move(actions)

    @property
    def frame_due(self) -> bool:
        """See `Imagination.frame_due`."""
        return self._rollouts.frame_due

    def imagine(self) -> ImaginedFrames:
        """See `Imagination.imagine`."""
        drawn = self._rollouts.active[:, None].clone()
        frame = self._rollouts.imagine()
        views = torch.from_numpy(patches.from_patches(patches.to_uint8(frame.frame), self._patch))
        state = Kinematics.unpack(frame.kinematics).state()
        return ImaginedFrames(
            views[:, None], frame.success_probability[:, None], state[:, None], frame.kinematics, drawn
        )

    def stop(self, which: Tensor) -> None:
        """See `Imagination.stop`."""
        self._rollouts.stop(which)

    @property
    def kinematics(self) -> Tensor:
        """Packed (B, 39), after the last control step."""
        return self._rollouts.kinematics

    @property
    def success(self) -> Tensor:
        """(B,) bool."""
        return self._rollouts.success

    @property
    def active(self) -> Tensor:
        """(B,) bool."""
        return self._rollouts.active


def imagination(model: ModelMixin, *, steps: int | None = None, stop_at_success: bool = True) -> Imagination:
    """The rollouts of a world model of any size; `steps` None takes the model's own number of denoising steps."""
    if isinstance(model, WorldModel):
        return PatchImagination(model, steps=steps, stop_at_success=stop_at_success)
    from wvl_ros.world_model.chunks import ChunkRollouts

    return ChunkRollouts(model, steps=steps, stop_at_success=stop_at_success)
