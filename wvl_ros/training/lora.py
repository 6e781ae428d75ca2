"""LoRA on the small world model: small matrices beside convolutions and linear layers; all else stays as it is."""

from __future__ import annotations

import copy
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from wvl_ros.errors import ConfigError

ADAPTER_FOLDER = "adapter"
_NOT = ("tracking.", "posture.", "grip.", "finder.", "physics.")  # these are fitted by themselves


def add_lora(model: nn.Module, rank: int) -> Any:
    """Puts an adapter of so many ranks into the model itself and freezes the rest; returns peft's wrapper of it.

    Raises:
        ConfigError: the rank is less than 1.
    """
    if rank < 1:
        raise ConfigError(f"The rank of LoRA must be at least 1, not {rank}.")
    from peft import LoraConfig, get_peft_model

    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
        and not name.startswith(_NOT)
        and getattr(module, "groups", 1) == 1  # peft cannot merge an adapter of a grouped convolution
    ]
    wrapper = get_peft_model(model, LoraConfig(r=rank, lora_alpha=rank, target_modules=names))
    nn.Module.to(wrapper, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return wrapper


def merged(wrapper: Any) -> Any:
    """A plain model with the adapter added into its weights; the wrapped one stays as it is."""
    return copy.deepcopy(wrapper).merge_and_unload()


def save_adapter(wrapper: Any, folder: Path) -> None:
    """Writes the adapter alone, in peft's format, for `PeftModel.from_pretrained` on the model it was made for."""
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    wrapper.save_pretrained(str(part), save_embedding_layers=False)
    folder.mkdir(parents=True, exist_ok=True)
    for file in part.iterdir():
        file.replace(folder / file.name)
    part.rmdir()
