"""A checkpoint's folder, as OpenVLA-OFT is published: read without running code, and written as safetensors and JSON.

`config.json`, `model*.safetensors`, `dataset_statistics.json`, the tokenizer's files, and where there is one
`action_head--N_checkpoint.pt` (the L1 head) and `proprio_projector--N_checkpoint.pt`. We write the last two as
`.safetensors`, and beside them `wvl_policy.json` (see `Settings`). An adapter in `lora_adapter` is already in the
published weights; it is read only where `Settings.base` names the model it belongs to.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from wvl_ros.errors import CheckpointError
from wvl_ros.policies.openvla_oft.actions import CONVENTIONS, Bounds
from wvl_ros.policies.openvla_oft.config import OpenVLAConfig, Settings
from wvl_ros.policies.openvla_oft.vision import NORMALISATION

CONFIG, STATISTICS, SETTINGS = "config.json", "dataset_statistics.json", "wvl_policy.json"
TOKENIZER, PREPROCESSOR = "tokenizer.json", "preprocessor_config.json"
# Kept as they are: others' programs look for them.
KEPT = (
    *(TOKENIZER, "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *(PREPROCESSOR, "processor_config.json", "generation_config.json"),
)
HEAD, PROPRIO, ADAPTER = "action_head", "proprio_projector", "lora_adapter"
_NOT_BUILT_IN = {
    "vision_backbone": "conditions its vision on the words (FiLM)",
    "noisy_action_projector": "draws its actions by diffusion",
}


@dataclass
class Checkpoint:
    """All that a folder holds but the weights.

    Attributes:
        config, settings: see there. table: what `config.json` holds.
        statistics: of each data set, as published. kept: files that are written back as they were.
        parts: files of `action_head` and `proprio_projector`, where there are such.
    """

    config: OpenVLAConfig
    settings: Settings
    table: dict[str, Any]
    statistics: dict[str, Any]
    kept: dict[str, bytes]
    parts: dict[str, Path]

    def bounds(self, kind: str, dim: int) -> Bounds:
        """Of the 'action' or the 'proprio' of the data set that the settings name.

        Raises:
            CheckpointError: there is no such data set, or it has none of `dim` numbers.
        """
        names, name = sorted(self.statistics), self.settings.dataset
        if not name and len(names) == 1:
            name = names[0]
        if name not in self.statistics:
            raise CheckpointError(
                f"There are no statistics of the data set '{name}'; name one of these as 'dataset' in {SETTINGS}: "
                f"{', '.join(names) or 'none'}."
            )
        entry = self.statistics[name].get(kind) if isinstance(self.statistics[name], dict) else None
        if not isinstance(entry, dict):
            raise CheckpointError(f"The statistics of '{name}' say nothing of its {kind}.")
        return Bounds.from_statistics(entry, dim, f"The {kind} of '{name}'")

    def normalisation(self) -> Any:
        """Of colours, see `FusedVision.set_normalisation`: as `preprocessor_config.json` says.

        `tvf_normalize_params` are what OFT's image processor really uses. In the published ones they differ by up to
        0.4 % from `means` and `stds`, as they were rounded to bfloat16.

        Raises:
            CheckpointError: the file does not say it.
        """
        if PREPROCESSOR not in self.kept:
            return NORMALISATION
        try:
            table = json.loads(self.kept[PREPROCESSOR])
            entries = table.get("tvf_normalize_params")
            if entries is None:
                pairs = list(zip(table["means"], table["stds"], strict=True))
            else:
                pairs = [(entry["mean"], entry["std"]) for entry in entries]
            if torch.tensor(pairs).shape != (2, 2, 3):
                raise ValueError("two means and deviations of three colours are needed")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"The {PREPROCESSOR} does not say how to normalise images ({error}).") from error
        return pairs


def read(folder: Path, settings: Settings | None = None) -> Checkpoint:
    """All of a folder but its weights.

    Args:
        settings: instead of those in `wvl_policy.json`.

    Raises:
        CheckpointError: a file is missing, damaged or of another network.
    """
    if not folder.is_dir():
        raise CheckpointError(f"There is no OpenVLA-OFT checkpoint '{folder}'; give the folder of a published one.")
    for part, what in _NOT_BUILT_IN.items():
        if any(folder.glob(f"{part}--*")):
            raise CheckpointError(f"The checkpoint '{folder}' {what}, which is not built in here.")
    if settings is None:
        if not (folder / SETTINGS).is_file():
            raise CheckpointError(
                f"'{folder}' does not say what its actions mean; put a {SETTINGS} there, such as "
                f'{{"convention": "libero", "cameras": ["exterior_image_1_left"]}} '
                f"(conventions: {', '.join(sorted(CONVENTIONS))})."
            )
        settings = Settings.from_table(read_table(folder / SETTINGS), folder / SETTINGS)
    base = base_folder(folder, settings)
    if base == folder and (folder / ADAPTER).is_dir() and not any(folder.glob("model*.safetensors*")):
        raise CheckpointError(
            f"'{folder}' holds an adapter and no model; name the folder of the model it was trained on as 'base' in "
            f"{SETTINGS}."
        )
    table = read_table(base / CONFIG)
    config = OpenVLAConfig.from_published(table, base / CONFIG)
    statistics = read_table(folder / STATISTICS) if (folder / STATISTICS).is_file() else table.get("norm_stats")
    kept = {
        name: next(path.read_bytes() for path in (folder / name, base / name) if path.is_file())
        for name in KEPT
        if (folder / name).is_file() or (base / name).is_file()
    }
    if TOKENIZER not in kept:
        raise CheckpointError(f"The tokenizer is missing in '{folder}'; copy {TOKENIZER} there.")
    found = {part: _part(folder, part) for part in (HEAD, PROPRIO)}
    parts = {part: path for part, path in found.items() if path is not None}
    return Checkpoint(config, settings, table, statistics if isinstance(statistics, dict) else {}, kept, parts)


def read_table(path: Path) -> dict[str, Any]:
    """A JSON file of names and values.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"'{path.parent}' is no OpenVLA-OFT checkpoint: {path.name} is missing.") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"'{path}' is damaged ({error}); copy it again.") from error
    if not isinstance(table, dict):
        raise CheckpointError(f"'{path}' is damaged: it holds no table of names.")
    return table


def base_folder(folder: Path, settings: Settings) -> Path:
    """Where the model is that a folder's weights or adapter make a policy of."""
    return Path(settings.base).expanduser() if settings.base else folder


def _part(folder: Path, part: str) -> Path | None:
    found = sorted(path for end in ("pt", "safetensors") for path in folder.glob(f"{part}--*_checkpoint.{end}"))
    if len(found) > 1:
        raise CheckpointError(f"'{folder}' holds several of {part}: {found[0].name} and {found[1].name}; keep one.")
    return found[0] if found else None
