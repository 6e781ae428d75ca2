"""Cosmos' video transformer with actions: diffusers' class, the action embedders of its authors' own variant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.transformers.transformer_cosmos import CosmosTransformer3DModel, CosmosTransformerBlock
from torch import Tensor, nn


class Mlp(nn.Module):
    """Two layers with a GELU between; names as in the published weights."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(inputs, hidden), nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(..., outputs)."""
        return self.fc2(nn.functional.gelu(self.fc1(x), approximate="tanh"))


class ActionCosmosTransformer(CosmosTransformer3DModel):
    """`CosmosTransformer3DModel` under actions, with the settings of Cosmos-Predict2 2B as defaults.

    All actions of a call are flattened and embedded twice: `action_embedder_B_D` is added to the sinusoidal embedding
    of the noise level before its norm, `action_embedder_B_3D` to its low-rank modulation.

    Its pass equals diffusers' to rounding, but the modulation of a frame, the same for all of its tokens, is computed
    once a frame and not once a token, and there is no torchvision in it.

    Args:
        action_dim, num_actions: numbers an action, actions a call. The others as in `CosmosTransformer3DModel`.
    """

    _repeated_blocks = ("CosmosTransformerBlock",)

    @register_to_config
    def __init__(
        self,
        in_channels: int = 17,
        out_channels: int = 16,
        num_attention_heads: int = 16,
        attention_head_dim: int = 128,
        num_layers: int = 28,
        mlp_ratio: float = 4.0,
        text_embed_dim: int = 1024,
        adaln_lora_dim: int = 256,
        max_size: Sequence[int] = (128, 240, 240),
        patch_size: Sequence[int] = (1, 2, 2),
        rope_scale: Sequence[float] = (1.0, 3.0, 3.0),
        concat_padding_mask: bool = True,
        action_dim: int = 7,
        num_actions: int = 12,
    ) -> None:
        super().__init__(
            in_channels=in_channels,
            out_channels=out_channels,
            num_attention_heads=num_attention_heads,
            attention_head_dim=attention_head_dim,
            num_layers=num_layers,
            mlp_ratio=mlp_ratio,
            text_embed_dim=text_embed_dim,
            adaln_lora_dim=adaln_lora_dim,
            max_size=tuple(max_size),
            patch_size=tuple(patch_size),
            rope_scale=tuple(rope_scale),
            concat_padding_mask=concat_padding_mask,
            extra_pos_embed_type=None,
        )
        width = num_attention_heads * attention_head_dim
        self.action_embedder_B_D = Mlp(action_dim * num_actions, 4 * width, width)
        self.action_embedder_B_3D = Mlp(action_dim * num_actions, 4 * width, 3 * width)

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        action: Tensor | None = None,
        condition_mask: Tensor | None = None,
        more_B_D: Tensor | None = None,
        **unused: Any,
    ) -> Tensor:
        """One pass.

        Args:
            hidden_states: (B, C, T, H, W). timestep: (B, T) or (B, 1, T, 1, 1), t of each frame.
            encoder_hidden_states: (B, L, text_embed_dim). action: (B, num_actions, action_dim).
            condition_mask: (B, 1, T, H, W), 1 where a frame is given.
            more_B_D: (B, D) is added where `action_embedder_B_D` is.

        Returns:
            (B, out_channels, T, H, W).
        """
        batch, _, frames, height, width = hidden_states.shape
        mask = hidden_states.new_zeros(batch, 1, frames, height, width)
        parts = [hidden_states] if condition_mask is None else [hidden_states, condition_mask.to(hidden_states.dtype)]
        if self.config["concat_padding_mask"]:
            parts.append(mask)  # nothing is padded
        x = torch.cat(parts, 1)
        rotary = self.rope(x)
        x = self.patch_embed(x)  # (B, T, H / 2, W / 2, D)
        grid = x.shape[1:4]
        x = x.flatten(2, 3)

        embed = self.time_embed
        wave = embed.time_proj(timestep.flatten()).to(x.dtype).unflatten(0, (batch, frames))
        lora = embed.t_embedder(wave)
        if action is not None:
            flat = action.flatten(1).to(x.dtype)
            wave = wave + self.action_embedder_B_D(flat)[:, None]
            lora = lora + self.action_embedder_B_3D(flat)[:, None]
        if more_B_D is not None:
            wave = wave + more_B_D.to(x.dtype)[:, None]
        time, lora = embed.norm(wave)[:, :, None], lora[:, :, None]

        for block in self.transformer_blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                x = self._gradient_checkpointing_func(_block, block, x, encoder_hidden_states, time, lora, rotary)
            else:
                x = _block(block, x, encoder_hidden_states, time, lora, rotary)
        x = self.proj_out(self.norm_out(x, time, lora))
        p_t, p_h, p_w = self.config["patch_size"]
        x = x.unflatten(3, (p_h, p_w, p_t, -1)).unflatten(2, grid[1:])
        return x.permute(0, 7, 1, 6, 2, 4, 3, 5).flatten(6, 7).flatten(4, 5).flatten(2, 3)


def _block(
    block: CosmosTransformerBlock, x: Tensor, text: Tensor, time: Tensor, lora: Tensor, rotary: tuple[Tensor, Tensor]
) -> Tensor:
    """One block on tokens (B, T, N, D) with one modulation a frame, (B, T, 1, D) and (B, T, 1, 3 D)."""
    frames = x.shape[1]
    h, gate = block.norm1(x, time, lora)
    x = x + gate * block.attn1(h.flatten(1, 2), image_rotary_emb=rotary).unflatten(1, (frames, -1))
    h, gate = block.norm2(x, time, lora)
    x = x + gate * block.attn2(h.flatten(1, 2), encoder_hidden_states=text).unflatten(1, (frames, -1))
    h, gate = block.norm3(x, time, lora)
    return x + gate * block.ff(h)
