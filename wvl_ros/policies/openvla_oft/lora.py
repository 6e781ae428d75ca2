"""LoRA on OpenVLA-OFT: rank 32 and alpha 16 beside every linear layer, as it was fine-tuned."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from wvl_ros.errors import CheckpointError, ConfigError
from wvl_ros.policies.openvla_oft import layout
from wvl_ros.policies.openvla_oft.config import OpenVLAConfig
from wvl_ros.policies.openvla_oft.network import OpenVLANetwork

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# SigLIP's pooling is not among them: it is published with an adapter, which no gradient ever reached.
TARGETS = r"(vision_backbone\.\w+\.encoder|projector|language_model)\..*(_proj|fc\d|lm_head)"
_NAME = re.compile(r"base_model\.model\.(?P<module>.+)\.(?P<part>lora_[AB])\.weight")
_PLAIN = ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save")  # unset, of a plain LoRA
_NOT_USED = ("attn_pool.", "lm_head.base_layer.")  # the latter: the layer itself, saved along with its adapter


def add_lora(network: OpenVLANetwork, rank: int = 32, alpha: int = 16) -> Any:
    """Puts an adapter into the network itself and freezes the rest; returns peft's wrapper of it.

    Raises:
        ConfigError: rank or alpha is less than 1.
    """
    if rank < 1 or alpha < 1:
        raise ConfigError(f"LoRA's rank and alpha must be at least 1, but are {rank} and {alpha}.")
    from peft import LoraConfig, get_peft_model

    return get_peft_model(
        network, LoraConfig(r=rank, lora_alpha=alpha, target_modules=TARGETS, init_lora_weights="gaussian")
    )


def merge_lora(wrapper: Any) -> OpenVLANetwork:
    """Adds the adapter into the network's weights and takes it away; returns the network."""
    network: OpenVLANetwork = wrapper.merge_and_unload()
    return network


def save_lora(wrapper: Any, folder: Path) -> None:
    """Writes the adapter alone, in peft's format, each file whole or not at all."""
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    wrapper.save_pretrained(str(part), save_embedding_layers=False)
    folder.mkdir(parents=True, exist_ok=True)
    for name in (_WEIGHTS, _CONFIG):
        (part / name).replace(folder / name)
    shutil.rmtree(part)


def load_lora(network: OpenVLANetwork, folder: Path) -> Any:
    """Puts a saved adapter into the network: one of ours, or one published, under timm's names.

    Raises:
        CheckpointError: it is missing, damaged, pickled or of another network.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    missing = [name for name in (_CONFIG, _WEIGHTS) if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(f"'{folder}' holds no adapter as safetensors: {missing[0]} is missing.")
    try:
        table = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        rank, alpha = int(table["r"]), int(table["lora_alpha"])
        weights = load_file(folder / _WEIGHTS)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"The adapter in '{folder}' is damaged ({error}); copy it again.") from error
    strange = [name for name in _PLAIN if table.get(name)]
    if strange:
        raise CheckpointError(f"The adapter in '{folder}' is no plain LoRA: its {_CONFIG} sets {strange[0]}.")
    ours = _our_names(network.config, weights, folder)
    wrapper = add_lora(network, rank, alpha)
    own = get_peft_model_state_dict(wrapper, save_embedding_layers=False)
    try:
        layout.check(ours, {name: tuple(tensor.shape) for name, tensor in own.items()}, folder)
    except CheckpointError:
        wrapper.unload()
        raise
    set_peft_model_state_dict(wrapper, ours)
    return wrapper


def _our_names(config: OpenVLAConfig, weights: Mapping[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """An adapter's matrices by our names: of a layer that is three here, A is that of each and B is cut in three."""
    table, found = layout.modules(config), {}
    for name, tensor in weights.items():
        if any(word in name for word in _NOT_USED):
            continue
        match = _NAME.fullmatch(name)
        if match is None:
            raise CheckpointError(f"The adapter in '{folder}' holds '{name}', which is no matrix of LoRA.")
        ours = table.get(match["module"], (match["module"],))
        parts = tensor.chunk(len(ours)) if match["part"] == "lora_B" else (tensor,) * len(ours)
        for module, part in zip(ours, parts, strict=True):
            found[f"base_model.model.{module}.{match['part']}.weight"] = part.contiguous()
    return found
