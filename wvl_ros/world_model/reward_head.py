"""The reward head: whether the frame just imagined is a success state, from the features that made it.

World-VLA-Loop's head is a light MLP on the denoised latent of a frame. Here the latent is the clean frame with the
U-Net's features, seen beside the rollout's first frame; where objects lie is kept by not pooling over space. What an
`OutcomeNetwork` finds in the frame alone is heeded beside it: that is the part that knows what the instruction names.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wvl_ros.world_model.blocks import zero
from wvl_ros.world_model.outcome import FINDINGS, OutcomeNetwork
from wvl_ros.world_model.patches import VIEWS

_SEEN, _DEEP = 48, 64


class RewardHead(nn.Module):
    """Logits of success.

    Args:
        view_channels: channels of a view as patches. features: of the U-Net at full grid. pooled: size of the vector of
            pooled features. facts: size of the arm's facts. text_dim: of the instruction. grid: patches along a side.
        vocabulary: words of instructions known.
    """

    def __init__(
        self,
        view_channels: int,
        features: int,
        pooled: int,
        facts: int,
        text_dim: int,
        grid: int,
        vocabulary: Sequence[str] = (),
    ) -> None:
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
        self.outcome = OutcomeNetwork(vocabulary, view_channels, grid, _SEEN)
        self.heed = nn.Linear(FINDINGS, 128)
        zero(self.heed)

    def first(self, first: Tensor) -> Tensor:
        """What it sees of a rollout's first frame as views (B V, K, G, G); the same all along."""
        return torch.cat([self.see_first(first), self.outcome.first(first)], 1)

    def forward(
        self, first: Tensor, frame: Tensor, features: Tensor, pooled: Tensor, facts: Tensor, text: Tensor, told: Tensor
    ) -> Tensor:
        """Logits (B,).

        Args:
            first: of `first`. frame: (B V, K, G, G) the clean frame. features: (B V, features, G, G).
            pooled, facts, text: (B, ...) vectors. told: of `outcome.instruction`.
        """
        seen, seen_alone = first.split([_SEEN, self.outcome.width], 1)
        h = self.see(torch.cat([frame.to(features.dtype), features], 1))
        h = h + seen.to(h.dtype)
        h = h + self.look_1(F.silu(self.norm_1(h)))
        h = F.silu(self.norm_3(self.look_2(F.silu(self.norm_2(h)))))
        scale, shift = self.film(text)[:, :, None, None].chunk(2, 1)
        h = F.silu(self.join(h.unflatten(0, (-1, VIEWS)).flatten(1, 2) * (1 + scale) + shift))
        known = torch.cat([pooled, facts, text], 1)
        found = self.outcome.findings(seen_alone, frame, told)
        return self.decide(self.place(h.flatten(1)) + self.rest(known) + self.heed(found))[:, 0].float()
