"""Weights as others published them: read without running code, and every name and shape accounted for."""

from __future__ import annotations

import inspect
import io
import json
import pickle
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from wvl_ros.errors import CheckpointError
from wvl_ros.world_model import checksums

Weights = dict[str, Tensor]
NAMES = (
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
    "diffusion_pytorch_model.fp16.safetensors",
    "model.safetensors",
    "model.safetensors.index.json",
)
_SHOWN = 4


@dataclass(frozen=True)
class Account:
    """What became of the names of a published file: how many were `loaded`, which were `left_out` (known, not used),
    and which of the model's own are `fresh`, as the file does not bring them.
    """

    loaded: int
    left_out: list[str] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)

    def sentence(self) -> str:
        """For people."""
        parts = [f"{self.loaded} weights loaded"]
        for what, names in (("not used", self.left_out), ("fresh, to be trained", self.fresh)):
            if names:
                parts.append(f"{len(names)} {what} ({', '.join(sorted({_group(name) for name in names}))})")
        return ", ".join(parts)


def read_weights(path: Path | str) -> Weights:
    """The tensors of a file (.safetensors, or a published .pt or .pth) or of a folder in diffusers' layout.

    A .pt is read by torch's reader of plain tensors; what would run code is refused.

    Raises:
        CheckpointError: nothing there, damaged, or it holds more than tensors.
    """
    path = Path(path)
    if path.is_dir():
        present = [path / name for name in NAMES if (path / name).is_file()]
        if not present:
            raise CheckpointError(f"'{path}' holds no weights as safetensors; pickled ones (.bin) are not read.")
        path = present[0]
    if not path.is_file():
        raise CheckpointError(f"There are no weights '{path}'; copy them there.")
    if path.name.endswith(".index.json"):
        try:
            shards = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError) as error:
            raise CheckpointError(f"The index '{path}' is damaged ({error}); copy it again.") from error
        return {
            name: tensor for shard in shards for name, tensor in read_weights(path.parent / Path(shard).name).items()
        }
    if path.suffix == ".safetensors":
        checksums.refuse_pickle(path)
        checksums.check(path)
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"The weights '{path}' are damaged ({error}); copy them again.") from error
    return _read_pickle(path)


def _read_pickle(path: Path) -> Weights:
    try:
        with torch.serialization.safe_globals([io.BytesIO, bytes]):  # of Transformer Engine's `_extra_state`
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"'{path}' is no plain state dict: it holds objects that would run code. Export it as safetensors."
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        raise CheckpointError(f"The weights '{path}' are damaged ({error}); copy them again.") from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"'{path}' holds a {type(content).__name__}, not a table of weights.")
    strange = [name for name, value in content.items() if not isinstance(value, Tensor) and "_extra_state" not in name]
    if strange:
        raise CheckpointError(f"'{path}' is no plain state dict: '{strange[0]}' is no tensor.")
    return {name: value for name, value in content.items() if isinstance(value, Tensor)}


def fit(
    model: nn.Module, weights: Weights, source: object, *, fresh: Iterable[str] = (), left_out: Iterable[str] = ()
) -> Account:
    """Copies weights into a model, exactly.

    Args:
        weights: by the model's names. source: what to call them in an error.
        fresh: beginnings of the model's names that may be missing, all of one beginning or none.
        left_out: beginnings of names that the model has no use for.

    Raises:
        CheckpointError: a name is missing or unknown, a shape differs, or a parameter is on the meta device.
    """
    fresh, left_out = tuple(fresh), tuple(left_out)
    own = model.state_dict()
    dropped = [name for name in weights if name not in own and name.startswith(left_out)]
    unknown = [name for name in weights if name not in own and not name.startswith(left_out)]
    missing = [name for name in own if name not in weights]
    whole = {start for start in fresh if not any(name.startswith(start) for name in weights)}
    lacking = [name for name in missing if not name.startswith(tuple(whole))]
    wrong = [
        f"{name} is {tuple(weights[name].shape)}, not {tuple(own[name].shape)}"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
    problems = [
        f"{len(names)} {what} ({', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''})"
        for what, names in (("missing", lacking), ("unknown", unknown), ("of another shape", wrong))
        if names
    ]
    if problems:
        raise CheckpointError(f"The weights '{source}' do not fit the {type(model).__name__}: {'; '.join(problems)}.")
    refuse_meta(model, source)
    with torch.no_grad():
        for name, tensor in own.items():
            if name in weights:
                tensor.copy_(weights[name])
    return Account(len(own) - len(missing), dropped, missing)


def refuse_meta(model: nn.Module, source: object) -> None:
    """
    Raises:
        CheckpointError: a parameter or a buffer has a shape but no values.
    """
    empty = [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.is_meta]
    if empty:
        raise CheckpointError(
            f"{len(empty)} weights of '{source}' were left on the meta device, such as '{empty[0]}': "
            "load it by wvl_ros, not by diffusers' from_pretrained."
        )


def settings_for(model: type, folder: Path) -> dict[str, Any]:
    """What the `config.json` of a folder in diffusers' layout says of the arguments that a class knows.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    try:
        table = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"The configuration in '{folder}' cannot be read: {error}") from error
    known = inspect.signature(model).parameters
    return {key: value for key, value in table.items() if key in known}


def prefixed(prefix: str, weights: Weights) -> Weights:
    """The same tensors under longer names."""
    return {prefix + name: tensor for name, tensor in weights.items()}


def _group(name: str) -> str:
    return ".".join(name.split(".")[: 2 if name.startswith("transformer.") else 1])
