"""The large world models as folders: `config.json`, one file of weights, and for `svd` CLIP's tokenizer."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save_file

from wvl_ros.errors import CheckpointError, ConfigError
from wvl_ros.world_model import checksums
from wvl_ros.world_model.published import fit, read_weights

CLASSES = {"SVDWorldModel": "wvl_ros.world_model.svd.model", "CosmosWorldModel": "wvl_ros.world_model.cosmos.model"}
TOKENIZER = "tokenizer"


def new_large(config: dict[str, Any], source: object = "the configuration") -> Any:
    """A model with fresh weights, of the class that `_class_name` names.

    Raises:
        CheckpointError: the configuration is of another architecture.
    """
    name = config.get("_class_name")
    if name not in CLASSES:
        raise CheckpointError(f"'{source}' holds a {name or 'nameless model'}; known are: {', '.join(CLASSES)}.")
    model = getattr(importlib.import_module(CLASSES[name]), name)
    known = {key: value for key, value in config.items() if not key.startswith("_")}
    try:
        return model(**known)
    except (TypeError, ValueError, KeyError, ConfigError) as error:
        raise CheckpointError(f"The configuration in '{source}' does not describe a {name}: {error}") from error


def load_large(config: dict[str, Any], folder: Path, device: str | None = None) -> Any:
    """The model of a folder, in the precision it was saved in and evaluation mode; on the GPU when there is one.

    Raises:
        CheckpointError: weights are missing, damaged or of another architecture.
    """
    from diffusers.models.modeling_utils import no_init_weights

    weights = read_weights(folder)
    with no_init_weights():  # every weight is overwritten: 2 billion random numbers would take a minute
        model = new_large(config, folder)
    # Module's own: that of diffusers warns of layers it would keep in float32, of which there are none.
    torch.nn.Module.to(model, next(iter(weights.values())).dtype)
    fit(model, weights, folder)
    if (folder / TOKENIZER).is_dir() and getattr(model, "text_encoder", None) is not None:
        from wvl_ros.world_model.svd.layout import load_tokenizer

        model.tokenizer = load_tokenizer(folder / TOKENIZER)
    return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()


def save_large(model: Any, folder: Path | str, dtype: torch.dtype = torch.bfloat16) -> None:
    """Writes what `load_large` and diffusers' `from_pretrained` read, each file whole or not at all."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in model.state_dict().items()}
    part = folder / f".{SAFETENSORS_WEIGHTS_NAME}.part"
    save_file(weights, part, metadata={"format": "pt"})
    checksums.put(part, folder / SAFETENSORS_WEIGHTS_NAME)
    if getattr(model, "tokenizer", None) is not None:
        model.tokenizer.save_pretrained(folder / TOKENIZER)
    part = folder / ".config.json.part"
    part.write_text(model.to_json_string())
    part.replace(folder / "config.json")
