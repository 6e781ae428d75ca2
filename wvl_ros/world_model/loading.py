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
from wvl_ros.world_model import checksums, large
from wvl_ros.world_model.model import WorldModel
from wvl_ros.world_model.published import refuse_meta

WEIGHTS_NAME = SAFETENSORS_WEIGHTS_NAME


def load_world_model(folder: Path | str) -> WorldModel:
    """The model of a folder, in evaluation mode: the small one in float32, a large one as `large.load_large` says.

    Nothing pickled is ever read.

    Raises:
        CheckpointError: no configuration or weights there, they are not those that were saved, or of another
            architecture.
    """
    folder = Path(folder)
    config = read_config(folder)
    if config.get("_class_name") in large.CLASSES:
        return large.load_large(config, folder)
    model = new_model(config, folder)
    path = folder / WEIGHTS_NAME
    checksums.refuse_pickle(path)
    if not path.is_file():
        raise CheckpointError(f"The weights '{path}' are missing; copy them there or train again.")
    checksums.check(path)
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"The weights '{path}' are damaged ({error}); copy them again.") from error
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(
            f"The weights '{path}' are of another architecture than the config.json beside them (keep both "
            "together), or an older wvl_ros saved them: then train again, or fine-tune the shipped one (--from small)."
        ) from error
    return model.eval()


def load_small_world_model(folder: Path | str, purpose: str) -> WorldModel:
    """As `load_world_model`, for a `purpose` (a command, say) that cannot use a large model.

    Raises:
        CheckpointError: also when it is a large one.
    """
    name = read_config(Path(folder)).get("_class_name")
    if name in large.CLASSES:
        raise CheckpointError(
            f"{purpose} takes the small world model, but '{folder}' holds a {name}; a large one is measured by the "
            "validations of `wvl train world-model --validation`."
        )
    return load_world_model(folder)


def save_world_model(model: WorldModel, folder: Path | str, dtype: torch.dtype = torch.bfloat16) -> None:
    """Writes what `load_world_model` and `WorldModel.from_pretrained` read, each file whole or not at all."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    refuse_meta(model, type(model).__name__)
    weights = {name: tensor.detach().to(dtype).contiguous() for name, tensor in model.state_dict().items()}
    part = folder / f".{WEIGHTS_NAME}.part"
    save_file(weights, part, metadata={"format": "pt"})
    checksums.put(part, folder / WEIGHTS_NAME)
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
