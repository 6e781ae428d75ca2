"""A world model from its folder: `config.json` and `diffusion_pytorch_model.safetensors`, as diffusers names them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from wvl_ros.errors import CheckpointError, ConfigError
from wvl_ros.world_model.model import WorldModel

WEIGHTS_NAME = SAFETENSORS_WEIGHTS_NAME


def load_world_model(folder: Path | str) -> WorldModel:
    """The model of a folder, in float32 and evaluation mode. Nothing pickled is ever read.

    Raises:
        CheckpointError: no configuration or weights there, or they are of another architecture.
    """
    folder = Path(folder)
    model = new_model(read_config(folder), folder)
    path = folder / WEIGHTS_NAME
    if not path.is_file():
        raise CheckpointError(f"The weights '{path}' are missing; copy them there or train again.")
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"The weights '{path}' are damaged ({error}); copy them again.") from error
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(
            f"The weights '{path}' are of another architecture than the config.json beside them; keep the two together."
        ) from error
    return model.eval()


def save_world_model(model: WorldModel, folder: Path | str, dtype: torch.dtype = torch.bfloat16) -> None:
    """Writes what `load_world_model` and `WorldModel.from_pretrained` read, each file whole or not at all."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().to(dtype).contiguous() for name, tensor in model.state_dict().items()}
    part = folder / f".{WEIGHTS_NAME}.part"
    save_file(weights, part, metadata={"format": "pt"})
    part.replace(folder / WEIGHTS_NAME)
    part = folder / ".config.json.part"
    part.write_text(model.to_json_string())
    part.replace(folder / "config.json")


def new_model(config: dict[str, Any], folder: Path) -> WorldModel:
    """A model with fresh weights, as a configuration read from `folder` describes it.

    Raises:
        CheckpointError: the configuration is of another architecture.
    """
    name = config.get("_class_name")
    if name != WorldModel.__name__:
        raise CheckpointError(
            f"'{folder}' holds a {name or 'nameless model'}, not a {WorldModel.__name__}; give another checkpoint."
        )
    known = {key: value for key, value in config.items() if not key.startswith("_")}
    try:
        return WorldModel(**known)
    except (TypeError, ValueError, KeyError, ConfigError) as error:
        raise CheckpointError(f"The configuration in '{folder}' does not describe a world model: {error}") from error


def read_config(folder: Path) -> dict[str, Any]:
    """The `config.json` of a folder.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"'{folder}' is not a checkpoint: config.json is missing.") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"'{path}' cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"'{path}' is not a configuration: it holds no table of names.")
    return config
