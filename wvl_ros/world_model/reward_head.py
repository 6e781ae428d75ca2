"""The reward head: whether the frame just imagined is a success state, from the features that made it.

World-VLA-Loop's head is a light MLP on the denoised latent of a frame. Here the latent is the clean frame with the
U-Net's features, seen beside the rollout's first frame; where objects lie is kept by not pooling over space.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wvl_ros.world_model.patches import VIEWS

_SEEN, _DEEP = 48, 64


class RewardHead(nn.Module):
    """Logits of success.

    Args:
        view_channels: channels of a view as patches. features: of the U-Net at full grid. pooled: size of the vector of
            pooled features. facts: size of the arm's facts. text_dim: of the instruction. grid: patches along a side.
    """

    def __init__(self, view_channels: int, features: int, pooled: int, facts: int, text_dim: int, grid: int) -> None:
        super().__init__()
        self.pooled = pooled
        self.see = nn.Conv2d(view_channels + features, _SEEN, 1)
        self.see_first = nn.Conv2d(view_channels, _SEEN, 1)
        self.norm_1, self.look_1 = nn.GroupNorm(4, _SEEN), nn.Conv2d(_SEEN, _SEEN, 3, padding=1)
        self.norm_2, self.look_2 = nn.GroupNorm(4, _SEEN), nn.Conv2d(_SEEN, _DEEP, 3, 2, 1)
        self.norm_3 = nn.GroupNorm(4, _DEEP)
        self.film = nn.Linear(text_dim, 2 * _DEEP * VIEWS)
        self.join = nn.Conv2d(_DEEP * VIEWS, _DEEP, 1)
        self.place = nn.Linear(_DEEP * (grid // 2) ** 2, 128)
        self.rest = nn.Linear(pooled + facts + text_dim, 128)
        self.decide = nn.Sequential(nn.SiLU(), nn.Linear(128, 64), nn.SiLU(), nn.Linear(64, 1))

    def first(self, first: Tensor) -> Tensor:
        """What it sees of a rollout's first frame as views (B V, K, G, G); the same all along."""
        return self.see_first(first)

    def forward(
        self, first: Tensor, frame: Tensor, features: Tensor, pooled: Tensor, facts: Tensor, text: Tensor
    ) -> Tensor:
        """Logits (B,).

        Args:
            first: of `first`. frame: (B V, K, G, G) the clean frame. features: (B V, features, G, G).
            pooled, facts, text: (B, ...) vectors.
        """
        h = self.see(torch.cat([frame.to(features.dtype), features], 1))
        h = h + first.to(h.dtype)
        h = h + self.look_1(F.silu(self.norm_1(h)))
        h = F.silu(self.norm_3(self.look_2(F.silu(self.norm_2(h)))))
        scale, shift = self.film(text)[:, :, None, None].chunk(2, 1)
        h = F.silu(self.join(h.unflatten(0, (-1, VIEWS)).flatten(1, 2) * (1 + scale) + shift))
        known = torch.cat([pooled, facts, text], 1)
        return self.decide(self.place(h.flatten(1)) + self.rest(known))[:, 0].float()
