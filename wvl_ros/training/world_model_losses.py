"""What the world model is trained to get right."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def image_loss(frame: Tensor, true: Tensor, last: Tensor, first: Tensor, change_weight: float) -> Tensor:
    """20 x squared + (smoothed) absolute error, patches that differ from the last or the first frame counting more."""
    error = frame - true
    with torch.no_grad():
        change = sum((_change(true, other) for other in (last, first)), torch.zeros(()))
        weight = 1 + change_weight * change
        weight = (weight / weight.mean((2, 3), keepdim=True)).repeat_interleave(frame.shape[1] // weight.shape[1], 1)
    square = error * error
    return (weight * (20 * square + (square + 1e-6).sqrt())).mean()


def reward_loss(logit: Tensor, reward: Tensor, sigma: Tensor, known: Tensor | None = None) -> Tensor:
    """Cross-entropy of the success state, weighted by 1 / (1 + sigma^2): a frame seen through more noise counts
    less. Rewards that are not `known` (B,) do not count.
    """
    each = F.binary_cross_entropy_with_logits(logit, reward, reduction="none") / (1 + sigma * sigma)
    return (each if known is None else each * known).mean()


def _change(a: Tensor, b: Tensor) -> Tensor:
    """(B, 3, G, G): the largest change of each patch in each view, 0..1."""
    return ((a - b).abs().unflatten(1, (3, -1)).amax(2) * 2).clamp(max=1)
