"""Cosmos-Predict2's rectified flow, written in noise levels sigma: t = sigma / (1 + sigma)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

SIGMA_MIN, SIGMA_MAX = 0.002, 80.0
SIGMA_GIVEN = 1e-4  # noise level the network is told of the frames that are given


class Scaling(NamedTuple):
    """x0 = skip * noisy + out * network(in * noisy, t); `weight` is the image loss's at this level."""

    t: Tensor
    skip: Tensor
    out: Tensor
    into: Tensor
    weight: Tensor


def scaling(sigma: Tensor) -> Scaling:
    """The factors of noise levels of any shape."""
    t = sigma / (1 + sigma)
    return Scaling(t, 1 - t, -t, 1 - t, (1 + sigma) ** 2 / sigma**2)


def draw_sigma(batch: int, frames: int, generator: torch.Generator | None = None) -> Tensor:
    """(B,) noise levels of training, higher for longer videos: `frames` counts latent frames."""
    return torch.randn(batch, generator=generator).exp() * frames**0.5


def scheduler(steps: int, device: torch.device) -> Any:
    """diffusers' Euler sampler on Karras' schedule from `SIGMA_MAX` to `SIGMA_MIN`, ready for `steps` steps."""
    from diffusers.schedulers import FlowMatchEulerDiscreteScheduler

    sampler = FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True)
    # As diffusers' pipelines of Cosmos do; its Karras schedule reads them.
    sampler.register_to_config(sigma_min=SIGMA_MIN, sigma_max=SIGMA_MAX)
    sampler.set_timesteps(sigmas=torch.linspace(0, 1, steps, dtype=torch.float64).tolist(), device=device)
    sampler.sigmas[-1] = sampler.sigmas[-2]
    return sampler
