"""`CosmosWorldModel` from what NVIDIA published: Cosmos' own `.pt` files, and the folders of diffusers."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from diffusers.models import AutoencoderKLWan

from wvl_ros.errors import CheckpointError
from wvl_ros.world_model.cosmos.model import CosmosWorldModel
from wvl_ros.world_model.cosmos.transformer import ActionCosmosTransformer
from wvl_ros.world_model.published import Account, Weights, fit, prefixed, read_weights, settings_for

OURS = ("heads.", "tracking.", "state_embedder.")
ACTIONS = ("transformer.action_embedder_",)  # which the plain video-to-world weights lack
RENAMED = (  # in this order
    ("t_embedder.1", "time_embed.t_embedder"),
    ("t_embedding_norm", "time_embed.norm"),
    ("blocks", "transformer_blocks"),
    ("adaln_modulation_self_attn.1", "norm1.linear_1"),
    ("adaln_modulation_self_attn.2", "norm1.linear_2"),
    ("adaln_modulation_cross_attn.1", "norm2.linear_1"),
    ("adaln_modulation_cross_attn.2", "norm2.linear_2"),
    ("adaln_modulation_mlp.1", "norm3.linear_1"),
    ("adaln_modulation_mlp.2", "norm3.linear_2"),
    ("self_attn", "attn1"),
    ("cross_attn", "attn2"),
    ("q_proj", "to_q"),
    ("k_proj", "to_k"),
    ("v_proj", "to_v"),
    ("output_proj", "to_out.0"),
    ("q_norm", "norm_q"),
    ("k_norm", "norm_k"),
    ("mlp.layer1", "ff.net.0.proj"),
    ("mlp.layer2", "ff.net.2"),
    ("x_embedder.proj.1", "patch_embed.proj"),
    ("final_layer.adaln_modulation.1", "norm_out.linear_1"),
    ("final_layer.adaln_modulation.2", "norm_out.linear_2"),
    ("final_layer.linear", "proj_out"),
)
# Tables that are computed anew, counters of the training, and Transformer Engine's notes.
NO_WEIGHTS = ("pos_embedder.", "accum_", "_extra_state")


def from_published(
    transformer: Path | str, vae: Path | str, *, averaged: bool = False, **config: Any
) -> tuple[CosmosWorldModel, Account]:
    """A model from Cosmos' own files: the action-conditioned `.pt`, or that of the video-to-world model.

    Args:
        transformer: the `.pt`. vae: the folder `vae` of diffusers' layout.
        averaged: take the running average (`net_ema.`) where the file holds both.
        config: of the model, other than the published settings.

    Raises:
        CheckpointError: a file holds more than tensors, or a name or shape is not as published.
    """
    weights = prefixed("transformer.", rename(read_weights(transformer), averaged=averaged))
    return _build(weights, Path(vae), transformer, config)


def from_diffusers(folder: Path | str, **config: Any) -> tuple[CosmosWorldModel, Account]:
    """A model from a folder of diffusers' layout, with `transformer` and `vae` in it.

    Raises:
        CheckpointError: a folder or file is missing, or its weights do not fit its own configuration.
    """
    folder = Path(folder)
    settings = settings_for(ActionCosmosTransformer, folder / "transformer")
    config["transformer_config"] = settings | dict(config.get("transformer_config") or {})
    return _build(prefixed("transformer.", read_weights(folder / "transformer")), folder / "vae", folder, config)


def rename(weights: Weights, *, averaged: bool = False) -> Weights:
    """Cosmos' own names as diffusers'."""
    prefix = "net_ema." if averaged else "net."
    if averaged and not any(name.startswith(prefix) for name in weights):
        raise CheckpointError("The file holds no running average (net_ema.); load it without.")
    other = "net." if averaged else "net_ema."
    renamed = {}
    for published, tensor in weights.items():
        if published.startswith(other):
            continue
        name = published.removeprefix(prefix)
        if name.startswith(NO_WEIGHTS) or any(part in name for part in NO_WEIGHTS):
            continue
        renamed[functools.reduce(lambda text, pair: text.replace(*pair), RENAMED, name)] = tensor
    return renamed


def _build(weights: Weights, vae: Path, source: object, config: dict[str, Any]) -> tuple[CosmosWorldModel, Account]:
    if not vae.is_dir():
        raise CheckpointError(f"'{vae}' is no folder: give the folder 'vae' of Cosmos-Predict2 in diffusers' layout.")
    config["vae_config"] = settings_for(AutoencoderKLWan, vae) | dict(config.get("vae_config") or {})
    weights = weights | prefixed("vae.", read_weights(vae))
    model = CosmosWorldModel(**config)
    return model.eval(), fit(model, weights, source, fresh=(*OURS, *ACTIONS))
