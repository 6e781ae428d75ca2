"""The training loss of `SVDWorldModel`: Ctrl-World's on the images, ours on state and reward, in one pass."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from wvl_ros.world_model.heads import Truth, head_losses
from wvl_ros.world_model.svd import edm
from wvl_ros.world_model.svd.model import SVDWorldModel

HISTORY_NOISE, PRESENT_NOISE = 0.3, 0.2


class Batch(NamedTuple):
    """B windows of T frames: the history, the present one, the new ones.

    `latents` (B, T, 4, 3 h, w) of `SVDWorldModel.encode`; `poses` (B, T, 7), measured for history and present,
    commanded for the new ones; `text` (B, 1024) of `SVDWorldModel.embed`; `truth` of the new frames.
    """

    latents: Tensor
    poses: Tensor
    text: Tensor
    truth: Truth


def loss(
    model: SVDWorldModel,
    batch: Batch,
    *,
    reward_weight: float = 1.0,
    state_weight: float = 0.1,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """`loss` to be minimised, and its parts `image`, `reward`, `state`, not yet weighted. Scalars.

    The noise is drawn on the processor, by `generator`: the same on every device.
    """
    clean = batch.latents.float()
    device, size, past = clean.device, len(clean), len(model.config["history"])

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator).to(device)

    blur = uniform(size, 1, 1, 1) * PRESENT_NOISE
    present = clean[:, past]
    present = (present + normal(*present.shape) * blur) * (1 + blur**2).rsqrt()
    blur = normal(size, past, 1, 1, 1) * HISTORY_NOISE
    history = (clean[:, :past] + normal(*clean[:, :past].shape) * blur) * (1 + blur**2).rsqrt()

    sigma = edm.draw_sigma(size, generator).to(device)
    wide = sigma.view(-1, 1, 1, 1, 1)
    s = edm.scaling(wide)
    target = clean[:, past:]
    noisy = target + normal(*target.shape) * wide
    beside = (present / model.vae.config.scaling_factor)[:, None].expand(-1, clean.shape[1], -1, -1, -1)
    given = torch.cat([torch.cat([history, noisy * s.into], 1), beside], 2)
    kept = uniform(size, 1, 1) >= float(model.config["action_dropout"])
    tokens = model.tokens(batch.poses, batch.text) * kept
    out = model(given, s.noise.flatten(), tokens)[:, past:]
    drawn = s.skip * noisy + s.out * out
    image = (s.weight * (drawn - target) ** 2).mean()
    judged = model.judge(drawn[:, 1:], batch.truth.foreseen)
    reward, state = head_losses(judged, batch.truth, sigma, model.heads.get_buffer("scale").float())
    total = image + reward_weight * reward + state_weight * state
    return {"loss": total, "image": image, "reward": reward, "state": state}
