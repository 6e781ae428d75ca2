"""Many imagined rollouts at once: the batched core under `ImaginedWorld`, evaluation and practice."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wvl_ros.errors import ConfigError
from wvl_ros.world_model.kinematics import Kinematics
from wvl_ros.world_model.model import Evidence, WorldModel

_BFLOAT16_BATCH = 4  # below it, float32 is as fast


@dataclass
class ImaginedFrame:
    """One frame of B rollouts: `frame` (B, C, G, G) in -1..1, `success_probability` (B,), packed `kinematics` (B,
    39).
    """

    frame: Tensor
    success_probability: Tensor
    kinematics: Tensor


class Rollouts:
    """B rollouts of one world model, each with a random generator of its own.

    A rollout that has been stopped, or that has succeeded, is not computed any more: its last frame is given again.

    Args:
        model: in evaluation mode.
        steps: denoising steps a frame. bfloat16: None decides by processor and batch.
        stop_at_success: whether a rollout ends when the reward head has seen success (threshold and run of the model's
            config).

    Attributes:
        drawn: rows of the rollouts that the last frame was computed for. evidence: what their rewards were told from.
    """

    def __init__(
        self, model: WorldModel, *, steps: int = 1, bfloat16: bool | None = None, stop_at_success: bool = True
    ) -> None:
        if steps < 1:
            raise ConfigError(f"A frame needs at least one denoising step, not {steps}.")
        self.model, self.steps, self.bfloat16, self.stop_at_success = model, steps, bfloat16, stop_at_success

    def start(
        self, frames: Tensor, kinematics: Tensor, instructions: Sequence[str], calibrated: Tensor, seeds: Sequence[int]
    ) -> None:
        """Begins B rollouts from first frames (B, C, G, G), packed kinematics (B, 39); `calibrated` (B,) as for the
        model.
        """
        self.generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
        self.last = self._previous = frames.contiguous(memory_format=torch.channels_last)
        self.kinematics = self._base = kinematics.clone()
        tokens = self.model.instruction.tokens(instructions)
        with torch.no_grad():
            self._context = self.model.context(self.last, kinematics, tokens, calibrated)
        self.things = self._context.things
        self.success_probability = torch.zeros(len(frames))
        self.active = torch.ones(len(frames), dtype=torch.bool)
        self.success = torch.zeros(len(frames), dtype=torch.bool)
        self._run = torch.zeros(len(frames), dtype=torch.long)
        self.drawn = torch.empty(0, dtype=torch.long)
        self.evidence: Evidence | None = None
        self._actions: list[Tensor] = []

    def stop(self, which: Tensor) -> None:
        """Ends the rollouts marked in `which` (B,) bool."""
        self.active &= ~which

    @torch.no_grad()
    def move(self, actions: Tensor) -> Tensor:
        """One control step of all arms under `actions` (B, 7); returns packed kinematics (B, 39). Images stay as they
        are.
        """
        self._actions.append(actions.float())
        moved = self.model.move(self.kinematics, actions.float()[:, None], self._context.calibrated)[0].pack()
        self.kinematics = torch.where(self.active[:, None], moved, self.kinematics)
        return self.kinematics

    @property
    def frame_due(self) -> bool:
        """Whether a frame's control steps are complete, so that `imagine` can be called."""
        return len(self._actions) == int(self.model.config["actions_per_frame"])

    @torch.no_grad()
    def imagine(self) -> ImaginedFrame:
        """The next frame, after `actions_per_frame` calls of `move`."""
        per_frame = int(self.model.config["actions_per_frame"])
        if len(self._actions) != per_frame:
            raise ConfigError(f"A frame is made of {per_frame} control steps, but {len(self._actions)} were taken.")
        actions = torch.stack(self._actions, 1)
        self._actions = []
        self.drawn = rows = self.active.nonzero()[:, 0]
        if len(rows):
            frame, reward, kinematics, things = self._denoise(rows, actions[rows])
            self._previous, self.last, self.kinematics = self.last, self.last.clone(), self.kinematics.clone()
            self.success_probability = self.success_probability.clone()
            self.things = self.things.clone()
            self.last[rows], self.kinematics[rows], self.things[rows] = frame, kinematics, things
            self.success_probability[rows] = reward
            self._judge(rows)
        self._base = self.kinematics
        return ImaginedFrame(self.last, self.success_probability, self.kinematics)

    def advance(self, actions: Tensor) -> ImaginedFrame:
        """`move` for each of the control steps of `actions` (B, K, 7), then `imagine`."""
        for k in range(actions.shape[1]):
            self.move(actions[:, k])
        return self.imagine()

    def in_bfloat16(self, batch: int) -> bool:
        """Whether so many rollouts are computed in bfloat16."""
        return self.bfloat16 if self.bfloat16 is not None else batch >= _BFLOAT16_BATCH and has_bfloat16()

    def _judge(self, rows: Tensor) -> None:
        high = self.success_probability[rows] > float(self.model.config["success_threshold"])
        self._run[rows] = torch.where(high, self._run[rows] + 1, torch.zeros_like(self._run[rows]))
        self.success |= self._run >= int(self.model.config["success_frames"])
        if self.stop_at_success:
            self.active &= ~self.success

    def _denoise(self, rows: Tensor, actions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        shape = self.last.shape[1:]
        if self.steps == 1:  # the first step draws from what is known; noise would be weighed with nothing
            x = torch.zeros(len(rows), *shape)
        else:
            x = torch.stack([torch.randn(shape, generator=self.generators[i]) for i in rows.tolist()])
        x = x.contiguous(memory_format=torch.channels_last)
        sigmas = torch.linspace(1, 0, self.steps + 1)
        bfloat16 = self.in_bfloat16(len(rows))
        history = (self.last[rows], self._previous[rows], self._base[rows])
        given = (*history, actions, self._context.select(rows), self.things[rows])
        for now, after in itertools.pairwise(sigmas):
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                out = self.model(x, now.expand(len(rows)), *given)
            x = x + (after - now) * (x - out.frame) / now if after > 0 else out.frame
        self.evidence = out.evidence
        return x.clamp(-1, 1), torch.sigmoid(out.reward), out.kinematics, out.things


def has_bfloat16() -> bool:
    """Whether this processor multiplies in bfloat16 (on others it is slower than float32)."""
    return bool(torch.cpu._is_avx512_bf16_supported())


def first_kinematics(poses: Tensor, grippers: Tensor, commands: Tensor) -> Tensor:
    """Packed kinematics (B, 39) of arms at rest: measured poses (B, 6), gripper positions (B, 1), commands in force (B,
    7).
    """
    return Kinematics.at_rest(poses.float(), grippers.float(), commands.float()).pack()
