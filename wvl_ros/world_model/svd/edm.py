"""EDM's preconditioning as Stable Video Diffusion was trained with: v-prediction at a continuous noise level."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

SCHEDULER = {  # of EulerDiscreteScheduler, as published with Stable Video Diffusion
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "sigma_max": 700.0,
    "sigma_min": 0.002,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "timestep_type": "continuous",
    "use_karras_sigmas": True,
}
LOG_MEAN, LOG_STD = 0.7, 1.6  # of the noise level in Ctrl-World's training


class Scaling(NamedTuple):
    """x0 = skip * noisy + out * network(in * noisy, noise); `weight` is the image loss's at this level."""

    skip: Tensor
    out: Tensor
    into: Tensor
    noise: Tensor
    weight: Tensor


def scaling(sigma: Tensor) -> Scaling:
    """The factors of noise levels of any shape."""
    total = sigma**2 + 1
    return Scaling(1 / total, -sigma / total.sqrt(), total.rsqrt(), sigma.log() / 4, total / sigma**2)


def draw_sigma(batch: int, generator: torch.Generator | None = None) -> Tensor:
    """(B,) noise levels of training."""
    return (torch.randn(batch, generator=generator) * LOG_STD + LOG_MEAN).exp()


def scheduler() -> Any:
    """diffusers' sampler with the settings above."""
    from diffusers.schedulers import EulerDiscreteScheduler

    return EulerDiscreteScheduler(**SCHEDULER)
