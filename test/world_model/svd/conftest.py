"""A Stable Video Diffusion of the same make as the real one, but tiny."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from wvl_ros.world_model.svd.model import SVDWorldModel

TINY: dict[str, Any] = {
    "unet_config": {
        "block_out_channels": [32, 32],
        "down_block_types": ["CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"],
        "up_block_types": ["UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"],
        "num_attention_heads": [1, 1],
        "cross_attention_dim": 32,
        "layers_per_block": 1,
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 24,
    },
    "vae_config": {
        "block_out_channels": [32, 32],
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "layers_per_block": 1,
        "sample_size": 16,
    },
    "text_config": {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "projection_dim": 16,
        "vocab_size": 32,
        "bos_token_id": 30,
        "eos_token_id": 31,
        "pad_token_id": 31,
    },
    "image_height": 8,
    "image_width": 16,
    "num_frames": 3,
    "actions_per_frame": 2,
    "history": [0, -3, -2],
    "sampling_steps": 2,
}


@pytest.fixture
def make_svd() -> Callable[..., SVDWorldModel]:
    """Makes one with random weights, fixed by `seed`; other settings go to its configuration."""

    def make(seed: int = 0, **config: Any) -> SVDWorldModel:
        torch.manual_seed(seed)
        return SVDWorldModel(**(TINY | {"text": False} | config)).eval()

    return make
