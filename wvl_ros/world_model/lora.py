"""LoRA on a large world model: small matrices beside the attention's, and our own parts trained whole."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from wvl_ros.errors import CheckpointError

ADAPTER, PARTS = "pytorch_lora_weights.safetensors", "trained_parts.safetensors"
# The queries and keys of a cross-attention to one token change nothing: see `OneTokenAttention`.
TARGETS = r"(unet|transformer)\..*(attn1\.to_(q|k|v|out\.0)|attn2\.to_(v|out\.0))"
WHOLE = ("heads.", "action_encoder.", "state_embedder.", "transformer.action_embedder_", "tracking.")


def add_lora(model: Any, rank: int = 32, alpha: int | None = None) -> list[torch.nn.Parameter]:
    """Adds an adapter to an `SVDWorldModel` or a `CosmosWorldModel`, freezes the rest; returns what is to be trained.

    What Stable Video Diffusion and Cosmos do not bring (actions, state, reward) is trained whole.
    """
    from peft import LoraConfig

    model.add_adapter(
        LoraConfig(r=rank, lora_alpha=alpha or rank, target_modules=TARGETS, init_lora_weights="gaussian")
    )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name or name.startswith(WHOLE))
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def save_lora(model: Any, folder: Path | str) -> None:
    """Writes the adapter and the parts trained whole, each file whole or not at all."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    part = f".{ADAPTER}.{os.getpid()}.part"
    model.save_lora_adapter(folder, weight_name=part)
    (folder / part).replace(folder / ADAPTER)
    whole = {
        name: tensor.detach().contiguous() for name, tensor in model.state_dict().items() if name.startswith(WHOLE)
    }
    temporary = folder / f".{PARTS}.{os.getpid()}.part"
    save_file(whole, temporary, metadata={"format": "pt"})
    temporary.replace(folder / PARTS)


def load_lora(model: Any, folder: Path | str) -> None:
    """Puts what `save_lora` wrote on the same model without an adapter.

    Raises:
        CheckpointError: the files are missing, damaged or of another model.
    """
    folder = Path(folder)
    missing = [name for name in (ADAPTER, PARTS) if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(f"'{folder}' holds no adapter: {missing[0]} is missing.")
    own = {name for name in model.state_dict() if name.startswith(WHOLE)}
    try:
        whole = load_file(folder / PARTS)
        if own != set(whole):
            raise CheckpointError(
                f"The adapter in '{folder}' is of another world model; give it to the one it was made on."
            )
        model.load_lora_adapter(folder, prefix=None, weight_name=ADAPTER, use_safetensors=True)
        model.load_state_dict(whole, strict=False)
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"The adapter in '{folder}' does not fit or is damaged: {error}") from error


def fuse_lora(model: Any) -> None:
    """Adds the adapter into the model's own weights, and takes it away: the names are those of a plain model again."""
    model.fuse_lora()
    model.unload_lora()
