"""The published names and shapes of OpenVLA's weights, and where each goes in our network.

The language model and the projector bear the published names. The vision transformers are published under timm's names
and here are transformers': the same numbers in the same order, with queries, keys and values apart or together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from wvl_ros.errors import CheckpointError
from wvl_ros.policies.openvla_oft.config import PATCH, OpenVLAConfig, Tower

Shapes = dict[str, tuple[int, ...]]
_DINO, _SIGLIP = "vision_backbone.featurizer.", "vision_backbone.fused_featurizer."
_DINO_BLOCK = {
    "norm1": ("norm1",),
    "attn.qkv": ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    "attn.proj": ("attention.o_proj",),
    "norm2": ("norm2",),
    "mlp.fc1": ("mlp.fc1",),
    "mlp.fc2": ("mlp.fc2",),
}
_SIGLIP_BLOCK = {
    "norm1": ("layer_norm1",),
    "attn.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attn.proj": ("self_attn.out_proj",),
    "norm2": ("layer_norm2",),
    "mlp.fc1": ("mlp.fc1",),
    "mlp.fc2": ("mlp.fc2",),
}
_CLASS = f"{_DINO}embeddings.cls_token"
_POSITIONS = f"{_DINO}embeddings.position_embeddings"  # here with a row for the class token, which timm lacks
_MASK_TOKEN = f"{_DINO}embeddings.mask_token"  # for DINOv2's own training; not published


class Piece(NamedTuple):
    """Published tensors and our own that hold the same numbers, each list joined in its order."""

    published: tuple[str, ...]
    ours: tuple[str, ...]


def modules(config: OpenVLAConfig) -> dict[str, tuple[str, ...]]:
    """Published modules with a weight and a bias whose name here is another, and ours in the same order."""
    table: dict[str, tuple[str, ...]] = {
        f"{_DINO}patch_embed.proj": (f"{_DINO}embeddings.patch_embeddings.projection",),
        f"{_DINO}norm": (f"{_DINO}layernorm",),
        f"{_SIGLIP}patch_embed.proj": (f"{_SIGLIP}embeddings.patch_embedding",),
        f"{_SIGLIP}norm": (f"{_SIGLIP}post_layernorm",),
        f"{_SIGLIP}attn_pool.proj": (f"{_SIGLIP}head.attention.out_proj",),
        f"{_SIGLIP}attn_pool.norm": (f"{_SIGLIP}head.layernorm",),
        f"{_SIGLIP}attn_pool.mlp.fc1": (f"{_SIGLIP}head.mlp.fc1",),
        f"{_SIGLIP}attn_pool.mlp.fc2": (f"{_SIGLIP}head.mlp.fc2",),
    }
    blocks = (
        (_DINO, "encoder.layer", _DINO_BLOCK, config.dino),
        (_SIGLIP, "encoder.layers", _SIGLIP_BLOCK, config.siglip),
    )
    for tower, layers, names, sizes in blocks:
        for i in range(sizes.layers):
            for name, ours in names.items():
                table[f"{tower}blocks.{i}.{name}"] = tuple(f"{tower}{layers}.{i}.{own}" for own in ours)
    return table


def pieces(config: OpenVLAConfig) -> list[Piece]:
    """All tensors of a checkpoint, by both names."""
    found = [
        Piece((f"{module}.{kind}",), tuple(f"{own}.{kind}" for own in ours))
        for module, ours in modules(config).items()
        for kind in ("weight", "bias")
    ]
    for i in range(config.dino.layers):
        for n in (1, 2):
            scale = f"{_DINO}encoder.layer.{i}.layer_scale{n}.lambda1"
            found.append(Piece((f"{_DINO}blocks.{i}.ls{n}.scale_factor",), (scale,)))
    found += [
        Piece((f"{_DINO}cls_token",), (_CLASS,)),
        Piece((f"{_DINO}reg_token",), (f"{_DINO}embeddings.register_tokens",)),
        Piece((f"{_DINO}pos_embed",), (_POSITIONS,)),
        Piece((f"{_SIGLIP}pos_embed",), (f"{_SIGLIP}embeddings.position_embedding.weight",)),
        Piece((f"{_SIGLIP}attn_pool.latent",), (f"{_SIGLIP}head.probe",)),
    ]
    for kind in ("weight", "bias"):
        pool = tuple(f"{_SIGLIP}attn_pool.{part}.{kind}" for part in ("q", "kv"))
        found.append(Piece(pool, (f"{_SIGLIP}head.attention.in_proj_{kind}",)))
    known = {name for piece in found for name in piece.published}
    return found + [Piece((name,), (name,)) for name in published_shapes(config) if name not in known]


def to_ours(
    config: OpenVLAConfig, published: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """Our tensors, one by one, from those published.

    Args:
        own: the network's `state_dict`, for its shapes; it may be on the meta device.
    """
    for piece in pieces(config):
        numbers = _joined([published[name] for name in piece.published])
        if piece.ours == (_POSITIONS,):
            numbers = torch.cat([numbers.new_zeros(config.dino.width), numbers])
        parts = numbers.split([own[name].numel() for name in piece.ours])
        for name, part in zip(piece.ours, parts, strict=True):
            yield name, part.view(own[name].shape)
    yield _MASK_TOKEN, published[f"{_DINO}cls_token"].new_zeros(own[_MASK_TOKEN].shape)


def to_published(config: OpenVLAConfig, own: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The published tensors, one by one, from the network's `state_dict`.

    A position that was learned for the class token is added to that token: published, it has none.
    """
    shapes = published_shapes(config)
    row = own[_POSITIONS][:, :1]
    own = {**own, _CLASS: own[_CLASS] + row, _POSITIONS: own[_POSITIONS][:, 1:]}
    for piece in pieces(config):
        numbers = _joined([own[name] for name in piece.ours])
        parts = numbers.split([math.prod(shapes[name]) for name in piece.published])
        for name, part in zip(piece.published, parts, strict=True):
            yield name, part.view(shapes[name])


def check(weights: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], source: object) -> None:
    """
    Raises:
        CheckpointError: a name is missing or unknown, or a shape differs; the first one is named.
    """
    film = [name for name in weights if ".blocks." in name and (".block." in name or ".scale." in name)]
    if film:
        raise CheckpointError(
            f"'{source}' conditions its vision on the words (FiLM: '{film[0]}'), which is not built in here."
        )
    problems = {
        "is missing": [name for name in shapes if name not in weights],
        "is unknown": [name for name in weights if name not in shapes],
        "has another shape": [
            name for name in shapes if name in weights and tuple(weights[name].shape) != shapes[name]
        ],
    }
    for what, names in problems.items():
        if names:
            known = names[0] in weights and names[0] in shapes
            detail = f": {tuple(weights[names[0]].shape)} instead of {shapes[names[0]]}" if known else ""
            more = f", as do {len(names) - 1} more" if len(names) > 1 else ""
            raise CheckpointError(f"The weights '{source}' are not OpenVLA-OFT's: '{names[0]}' {what}{detail}{more}.")


def _joined(tensors: list[Tensor]) -> Tensor:
    """Their numbers (n,) in a row; a copy only where there are several."""
    return tensors[0].flatten() if len(tensors) == 1 else torch.cat([tensor.flatten() for tensor in tensors])


def published_shapes(config: OpenVLAConfig) -> Shapes:
    """Every tensor that `model*.safetensors` holds, and its shape."""
    width, inner = config.width, int(config.llama["intermediate_size"])
    features = config.dino.width + config.siglip.width
    shapes = _tower(_DINO, config.dino, config.patches) | _tower(_SIGLIP, config.siglip, config.patches)
    shapes |= _pool(f"{_SIGLIP}attn_pool.", config.siglip)
    shapes |= _linear("projector.fc1", features, 4 * features) | _linear("projector.fc2", 4 * features, width)
    shapes |= _linear("projector.fc3", width, width)
    heads, key_heads = int(config.llama["num_attention_heads"]), int(config.llama["num_key_value_heads"])
    keys = width // heads * key_heads
    for i in range(int(config.llama["num_hidden_layers"])):
        layer = f"language_model.model.layers.{i}."
        for name, shape in {
            "input_layernorm": (width,),
            "post_attention_layernorm": (width,),
            "self_attn.q_proj": (width, width),
            "self_attn.k_proj": (keys, width),
            "self_attn.v_proj": (keys, width),
            "self_attn.o_proj": (width, width),
            "mlp.gate_proj": (inner, width),
            "mlp.up_proj": (inner, width),
            "mlp.down_proj": (width, inner),
        }.items():
            shapes[f"{layer}{name}.weight"] = shape
    words = (int(config.llama["vocab_size"]), width)
    return shapes | {
        "language_model.model.embed_tokens.weight": words,
        "language_model.model.norm.weight": (width,),
        "language_model.lm_head.weight": words,
    }


def _tower(name: str, tower: Tower, patches: int) -> Shapes:
    width = tower.width
    shapes: Shapes = {
        f"{name}patch_embed.proj.weight": (width, 3, PATCH, PATCH),
        f"{name}patch_embed.proj.bias": (width,),
    }
    shapes |= {f"{name}pos_embed": (1, patches, width)} | _norm(f"{name}norm", width)
    if tower.registers:
        shapes |= {f"{name}cls_token": (1, 1, width), f"{name}reg_token": (1, tower.registers, width)}
    for i in range(tower.layers):
        block = f"{name}blocks.{i}."
        shapes |= _norm(f"{block}norm1", width) | _norm(f"{block}norm2", width)
        shapes |= _linear(f"{block}attn.qkv", width, 3 * width) | _linear(f"{block}attn.proj", width, width)
        shapes |= _linear(f"{block}mlp.fc1", width, tower.inner) | _linear(f"{block}mlp.fc2", tower.inner, width)
        if tower.registers:
            shapes |= {f"{block}ls{n}.scale_factor": (width,) for n in (1, 2)}
    return shapes


def _pool(name: str, tower: Tower) -> Shapes:
    width = tower.width
    shapes = (
        {f"{name}latent": (1, 1, width)} | _linear(f"{name}q", width, width) | _linear(f"{name}kv", width, 2 * width)
    )
    shapes |= _linear(f"{name}proj", width, width) | _norm(f"{name}norm", width)
    return shapes | _linear(f"{name}mlp.fc1", width, tower.inner) | _linear(f"{name}mlp.fc2", tower.inner, width)


def _linear(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}
