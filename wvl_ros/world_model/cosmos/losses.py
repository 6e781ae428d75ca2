"""The training loss of `CosmosWorldModel`: Cosmos' on the images, ours on state and reward, in one pass."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from wvl_ros.world_model.cosmos import flow
from wvl_ros.world_model.cosmos.model import CosmosWorldModel
from wvl_ros.world_model.heads import Truth, head_losses
from wvl_ros.world_model.poses import relative


class Batch(NamedTuple):
    """B windows.

    `latents` (B, 16, T, 3 h, w) of `CosmosWorldModel.encode`: first frame, the last four (with history), the new ones;
    `poses` (B, 1 + F, 7), the present one measured, the F new ones commanded; `now` (B, 10) the present state;
    `text` (B, L, 1024); `truth` of the F new frames.
    """

    latents: Tensor
    poses: Tensor
    now: Tensor
    text: Tensor
    truth: Truth


def loss(
    model: CosmosWorldModel,
    batch: Batch,
    *,
    reward_weight: float = 1.0,
    state_weight: float = 0.1,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """`loss` to be minimised, and its parts `image`, `reward`, `state`, not yet weighted. Scalars.

    As upstream, the image loss is the mean over all latent frames, of which the given ones contribute nothing.
    """
    clean = batch.latents.float()
    device, size = clean.device, len(clean)
    sigma = flow.draw_sigma(size, clean.shape[2], generator).to(device)
    wide = sigma.view(-1, 1, 1, 1, 1)
    noisy = clean + torch.randn(clean.shape, generator=generator).to(device) * wide
    kept = (torch.rand(size, 1, 1, generator=generator) >= float(model.config["text_dropout"])).to(device)
    given = clean[:, :, : model.given_latents]
    drawn = model(noisy, sigma, given, relative(batch.poses.float()), batch.now, batch.text * kept)
    image = (flow.scaling(wide).weight * (drawn - clean) ** 2).mean()
    judged = model.judge(drawn, batch.truth.foreseen)
    reward, state = head_losses(judged, batch.truth, sigma, model.heads.get_buffer("scale").float())
    total = image + reward_weight * reward + state_weight * state
    return {"loss": total, "image": image, "reward": reward, "state": state}
