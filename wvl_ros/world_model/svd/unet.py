"""Stable Video Diffusion's U-Net, unchanged, with one context token for each frame."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor


class FrameTokens:
    """The context of `UNetSpatioTemporalConditionModel`, one token (B, F, D) for each frame instead of one for all.

    The U-Net repeats its context (B, 1, D) for every frame by `repeat_interleave`. In place of a tensor it gets this
    object, which answers with the frames' own tokens. So Ctrl-World's only change to the network needs no copy of it.
    """

    def __init__(self, tokens: Tensor) -> None:
        self._tokens = tokens
        self.shape = torch.Size((tokens.shape[0], 1, tokens.shape[2]))

    def repeat_interleave(self, repeats: int, dim: int = 0, output_size: int | None = None) -> Tensor:
        """(B * F, 1, D)."""
        if dim != 0 or repeats != self._tokens.shape[1]:
            raise ValueError(f"{self._tokens.shape[1]} frames have a token, but {repeats} are drawn")
        return self._tokens.flatten(0, 1)[:, None]


class OneTokenAttention:
    """Attention processor for a context of one token: the softmax over one key is 1, so the answer is its value.

    The same numbers as diffusers' own, without queries, keys and scores.
    """

    def __init__(self, usual: Any) -> None:
        self.usual = usual

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        *rest: Any,
        **more: Any,
    ) -> Tensor:
        if encoder_hidden_states is None or encoder_hidden_states.shape[1] != 1 or rest or attn.residual_connection:
            return self.usual(attn, hidden_states, encoder_hidden_states, *rest, **more)
        value = attn.to_out[0](attn.to_v(encoder_hidden_states)) / attn.rescale_output_factor
        return value.expand(-1, hidden_states.shape[1], -1)


def use_one_token_attention(unet: Any) -> None:
    """Puts `OneTokenAttention` in place of every cross-attention of a U-Net."""
    processors = unet.attn_processors
    unet.set_attn_processor(
        {name: OneTokenAttention(usual) if ".attn2." in name else usual for name, usual in processors.items()}
    )
