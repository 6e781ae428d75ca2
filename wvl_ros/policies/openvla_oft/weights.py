"""The weights of a checkpoint's folder, in and out."""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import init_empty_weights
from safetensors.torch import save_file
from torch import Tensor

from wvl_ros.errors import CheckpointError, ConfigError
from wvl_ros.policies.openvla_oft import layout, lora
from wvl_ros.policies.openvla_oft.actions import CONVENTIONS
from wvl_ros.policies.openvla_oft.checkpoint import (
    ADAPTER,
    CONFIG,
    HEAD,
    PROPRIO,
    SETTINGS,
    STATISTICS,
    Checkpoint,
    base_folder,
)
from wvl_ros.policies.openvla_oft.network import OpenVLANetwork
from wvl_ros.world_model import checksums
from wvl_ros.world_model.published import read_weights, refuse_meta

INDEX = "model.safetensors.index.json"
SHARD = 5_000_000_000  # bytes a file of weights


def load_network(
    folder: Path, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype | None = None
) -> OpenVLANetwork:
    """The network of a folder, in evaluation mode. Memory is taken for its weights once, and one tensor more.

    Args:
        checkpoint: what `read` gave for the folder.
        dtype: None takes that of the projector's weights, which is bfloat16 of those published. Published state
            projectors are float32; OFT, too, makes them what the rest is.

    Raises:
        CheckpointError: weights are missing, unknown, of another shape, damaged or pickled in a way that runs code.
    """
    config, settings = checkpoint.config, checkpoint.settings
    state_dim = CONVENTIONS[settings.convention].state_dim if PROPRIO in checkpoint.parts else 0
    with init_empty_weights(include_buffers=False):
        network = OpenVLANetwork(config, settings.slots, HEAD in checkpoint.parts, state_dim)
    own = network.state_dict()
    expected = {name for piece in layout.pieces(config) for name in piece.ours}
    if not expected <= own.keys():
        raise CheckpointError(
            f"transformers {transformers.__version__} has no '{min(expected - own.keys())}'; install 5.20 or later."
        )
    base = base_folder(folder, settings)
    weights = read_weights(base)
    layout.check(weights, layout.published_shapes(config), base)
    dtype = dtype or weights["projector.fc1.weight"].dtype
    ours = {name: tensor.to(device, dtype, copy=True) for name, tensor in layout.to_ours(config, weights, own)}
    for part, path in checkpoint.parts.items():
        shapes = {name: tuple(tensor.shape) for name, tensor in own.items() if name.startswith(f"{part}.")}
        found = {f"{part}.{name.removeprefix('module.')}": tensor for name, tensor in read_weights(path).items()}
        layout.check(found, shapes, path)
        ours |= {name: tensor.to(device, dtype, copy=True) for name, tensor in found.items()}
    network.load_state_dict(ours, assign=True)
    network.vision_backbone.set_normalisation(checkpoint.normalisation())
    network.to(device)  # the buffers
    refuse_meta(network, folder)
    if settings.base:
        lora.merge_lora(lora.load_lora(network, folder / ADAPTER))
    return network.eval()


def write(folder: Path, checkpoint: Checkpoint, network: OpenVLANetwork, shard: int = SHARD) -> None:
    """Writes what `read` and `load_network` read, each file whole or not at all.

    Args:
        shard: bytes of weights a file.

    Raises:
        ConfigError: the network has an adapter, or the folder holds other weights.
    """
    own = network.state_dict()
    if any(".lora_A." in name for name in own):
        raise ConfigError("Merge the adapter before saving the whole policy, or save the adapter alone.")
    order = [name for piece in layout.pieces(checkpoint.config) for name in piece.published]
    files = _files(order, layout.published_shapes(checkpoint.config), network.projector.fc1.weight.itemsize, shard)
    parts = {part: f"{path.stem}.safetensors" for part, path in checkpoint.parts.items()}
    _refuse_others(folder, {*files, *parts.values(), *([INDEX] if len(files) > 1 else [])})
    folder.mkdir(parents=True, exist_ok=True)
    tensors = layout.to_published(checkpoint.config, own)
    for file, held in files.items():
        _put_weights(dict(itertools.islice(tensors, len(held))), folder / file)
    if len(files) > 1:
        size = sum(math.prod(shape) for shape in layout.published_shapes(checkpoint.config).values())
        index = {
            "metadata": {"total_size": size * network.projector.fc1.weight.itemsize},
            "weight_map": {name: file for file, held in files.items() for name in held},
        }
        _put(folder / INDEX, index)
    for part, name in parts.items():
        _put_weights(getattr(network, part).state_dict(), folder / name)
    dtype = str(network.projector.fc1.weight.dtype).removeprefix("torch.")
    _put(folder / CONFIG, checkpoint.table | {"torch_dtype": dtype})
    _put(folder / STATISTICS, checkpoint.statistics)
    _put(folder / SETTINGS, asdict(replace(checkpoint.settings, base="")))
    for name, content in checkpoint.kept.items():
        _put(folder / name, content)


def _files(order: list[str], shapes: layout.Shapes, item: int, shard: int) -> dict[str, list[str]]:
    """Names of the tensors in each file, in order."""
    groups: list[list[str]] = [[]]
    size = 0
    for name in order:
        size += math.prod(shapes[name]) * item
        if size > shard and groups[-1]:
            groups.append([])
            size = math.prod(shapes[name]) * item
        groups[-1].append(name)
    if len(groups) == 1:
        return {"model.safetensors": groups[0]}
    return {f"model-{i:05}-of-{len(groups):05}.safetensors": group for i, group in enumerate(groups, 1)}


def _refuse_others(folder: Path, names: set[str]) -> None:
    patterns = ("model*.safetensors*", f"{HEAD}--*", f"{PROPRIO}--*")
    others = sorted(path.name for pattern in patterns for path in folder.glob(pattern) if path.name not in names)
    if others:
        raise ConfigError(f"'{folder}' holds '{others[0]}' of another checkpoint; choose an empty folder.")


def _put_weights(tensors: Mapping[str, Tensor], path: Path) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(held, part, metadata={"format": "pt"})
    part.chmod(0o644)  # safetensors writes files that only their owner can read
    checksums.put(part, path)


def _put(path: Path, content: bytes | Mapping[str, Any]) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_bytes(content if isinstance(content, bytes) else (json.dumps(content, indent=2) + "\n").encode())
    part.replace(path)
