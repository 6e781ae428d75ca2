"""The world model as a plain diffusers pipeline: what one writes first, to compare `Rollouts` with."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from wvl_ros.world_model.model import WorldModel


class WorldModelPipeline(DiffusionPipeline):
    """The next frame by the Euler scheduler of flow matching, in float32, nothing kept from one call to the next."""

    def __init__(self, model: WorldModel, scheduler: FlowMatchEulerDiscreteScheduler) -> None:
        super().__init__()
        self.register_modules(model=model, scheduler=scheduler)
        self.set_progress_bar_config(disable=True)

    @torch.no_grad()
    def __call__(
        self,
        instructions: list[str],
        first: Tensor,
        first_kinematics: Tensor,
        calibrated: Tensor,
        last: Tensor,
        previous: Tensor,
        kinematics: Tensor,
        actions: Tensor,
        num_inference_steps: int = 50,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Frames (B, C, G, G), probabilities of success (B,) and kinematics (B, 39) after actions (B, K, 7)."""
        model, scheduler = self.model, self.scheduler
        scheduler.set_timesteps(num_inference_steps)
        x = torch.randn(last.shape, generator=generator)
        for time in self.progress_bar(scheduler.timesteps):
            sigma = (time / scheduler.config.num_train_timesteps).expand(len(x))
            tokens = model.instruction.tokens(instructions)
            context = model.context(first, first_kinematics, tokens, calibrated)
            out = model(x, sigma, last, previous, kinematics, actions, context)
            velocity = (x - out.frame) / sigma[:, None, None, None]
            x = scheduler.step(velocity, time, x, return_dict=False)[0]
        return x.clamp(-1, 1), torch.sigmoid(out.reward), out.kinematics


def make_pipeline(model: WorldModel) -> WorldModelPipeline:
    """The pipeline of a loaded model."""
    scheduler: Any = FlowMatchEulerDiscreteScheduler()
    return WorldModelPipeline(model, scheduler)
