"""Whether a frame is a success state, told from the frame, a rollout's first one and the instruction alone.

A network of its own, so that it can be fitted to true frames by the thousand: that an instruction means one thing and
not another is learned late and all at once, long after what success looks like. It is a part of the world model's
reward head, and two of it are the visual judge.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wvl_ros.world_model.instruction import InstructionEncoder
from wvl_ros.world_model.patches import VIEWS

FINDINGS = 96  # size of what it finds
_TEXT = 32


class OutcomeNetwork(nn.Module):
    """A small CNN on three views of the first and the present frame, modulated by the instruction.

    Args:
        vocabulary: words of instructions known. view_channels: channels of a view as patches. grid: patches along a
            side, an even number. width: channels of a view.
    """

    def __init__(self, vocabulary: Sequence[str], view_channels: int, grid: int, width: int = 48) -> None:
        super().__init__()
        self.width = width
        self.instruction = InstructionEncoder(vocabulary, _TEXT)
        self.see_first = nn.ModuleList([nn.Conv2d(view_channels, width, 3, padding=1) for _ in range(VIEWS)])
        self.see = nn.ModuleList([nn.Conv2d(view_channels, width, 3, padding=1, bias=False) for _ in range(VIEWS)])
        self.look = nn.ModuleList(
            [
                nn.Sequential(
                    nn.GroupNorm(4, width), nn.SiLU(), nn.Conv2d(width, 64, 3, 2, 1), nn.GroupNorm(4, 64), nn.SiLU()
                )
                for _ in range(VIEWS)
            ]
        )
        self.film = nn.Linear(_TEXT, 2 * 64 * VIEWS)
        self.mix = nn.Conv2d(64 * VIEWS, 64 * VIEWS, 3, padding=1, groups=VIEWS)
        self.join = nn.Conv2d(64 * VIEWS, 32, 1)
        self.find = nn.Linear(32 * (grid // 2) ** 2, FINDINGS)
        self.decide = nn.Linear(FINDINGS, 1)

    def first(self, first: Tensor) -> Tensor:
        """What it sees of first frames as views (B V, K, G, G): (B V, width, G, G), the same all along a rollout."""
        return _each(self.see_first, first)

    def findings(self, first: Tensor, frame: Tensor, text: Tensor) -> Tensor:
        """What it finds (B, FINDINGS).

        Args:
            first: of `first`. frame: (B V, K, G, G) the present frame as views. text: (B, 32) of `instruction`.
        """
        h = _each(self.look, first + _each(self.see, frame)).unflatten(0, (-1, VIEWS)).flatten(1, 2)
        scale, shift = self.film(text)[..., None, None].chunk(2, 1)
        h = F.silu(self.join(F.silu(self.mix(h * (1 + scale) + shift))))
        return F.silu(self.find(h.flatten(1)))

    def forward(self, first: Tensor, frame: Tensor, tokens: Tensor) -> Tensor:
        """Logits (B,) of success: frames float (B, C, G, G) in -1..1, word numbers (B, words)."""
        first, frame = (image.unflatten(1, (VIEWS, -1)).flatten(0, 1) for image in (first, frame))
        return self.decide(self.findings(self.first(first), frame, self.instruction(tokens)))[:, 0].float()


def _each(layers: nn.ModuleList, views: Tensor) -> Tensor:
    """One of the layers for each view of (B V, K, G, G)."""
    parts = views.unflatten(0, (-1, VIEWS)).unbind(1)
    return torch.stack([layer(part) for layer, part in zip(layers, parts, strict=True)], 1).flatten(0, 1)
