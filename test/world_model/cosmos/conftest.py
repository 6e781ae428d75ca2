"""A Cosmos of the same make as the real one, but tiny."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from wvl_ros.world_model.cosmos.model import CosmosWorldModel

TINY: dict[str, Any] = {
    "transformer_config": {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "num_layers": 2,
        "text_embed_dim": 8,
        "adaln_lora_dim": 4,
        "num_actions": 4,
    },
    "vae_config": {"base_dim": 4, "z_dim": 16, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1},
    "image_height": 16,
    "image_width": 32,
    "sampling_steps": 2,
}


@pytest.fixture
def make_cosmos() -> Callable[..., CosmosWorldModel]:
    """Makes one with random weights, fixed by `seed`; other settings go to its configuration."""

    def make(seed: int = 0, **config: Any) -> CosmosWorldModel:
        torch.manual_seed(seed)
        return CosmosWorldModel(**(TINY | config)).eval()

    return make
