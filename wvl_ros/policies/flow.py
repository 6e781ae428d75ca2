"""Flow matching of action chunks, as pi0 and pi0.5 draw theirs: VLAW's supervised update is made for such a head.

The straight path from an action to noise is x_t = t noise + (1 - t) action; the head learns its velocity, noise minus
action, and a chunk is drawn by following it back from t = 1 (openpi's conventions, its times Beta(1.5, 1)).
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from wvl_ros.policies.network import Context, PolicyNetwork, places_loss

_BODY_SCALE = 0.4  # normalised velocities are about so large


def flow_loss(
    network: PolicyNetwork, known: Context, actions: Tensor, places: Tensor, generator: torch.Generator
) -> dict[str, Tensor]:
    """Terms of the supervised loss: 'flow' and 'places', and their sum 'loss'.

    Args:
        known: the network's `context` of the batch.
        actions: (B, T, 7) expert's velocities and gripper commands; places: (B, 6) m. NaN is not known, and counts not.
        generator: of noise and times.
    """
    told = ~actions[..., 6].isnan()
    target = to_flow(actions.nan_to_num()) * told[..., None]
    noise = torch.randn(target.shape, generator=generator)
    time = torch.rand(len(target), generator=generator) ** (1 / 1.5) * 0.999 + 0.001  # Beta(1.5, 1)
    along = time[:, None, None]
    velocity = network.velocity(known, along * noise + (1 - along) * target, time)
    gap = (velocity - (noise - target)).square().mean(-1)
    terms = {"flow": (gap * told).sum() / told.sum().clamp(min=1), "places": places_loss(known.places, places)}
    return terms | {"loss": terms["flow"] + terms["places"]}


def draw(network: PolicyNetwork, known: Context, steps: int, generator: torch.Generator) -> Tensor:
    """Chunks (B, T, 7): velocities -1..1 and gripper 0 or 1, drawn in so many Euler steps from noise."""
    x = torch.randn(len(known.places), network.chunk_size, 7, generator=generator)
    times = torch.linspace(1, 0, steps + 1)
    for now, after in itertools.pairwise(times):
        x = x + (after - now) * network.velocity(known, x, now.expand(len(x)))
    return torch.cat([(x[..., :6] * _BODY_SCALE).clamp(-1, 1), (x[..., 6:] > 0).float()], -1)


def to_flow(actions: Tensor) -> Tensor:
    """Actions (B, T, 7) in the units of the flow: about as large as the noise, the gripper -1 or 1."""
    closed = (actions[..., 6:] >= 0.5).to(actions.dtype)
    return torch.cat([actions[..., :6] / _BODY_SCALE, 2 * closed - 1], -1)
