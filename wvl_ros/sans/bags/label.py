"""Labels a bag that is closed: who says how its episode went is noted in metadata.yaml."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from wvl_ros.errors import BagError, UnknownNameError
from wvl_ros.sans.episode import OUTCOMES

SOURCES = ("world", "operator", "reward_model", "dataset")


def check_label(outcome: str, source: str) -> None:
    """Raises UnknownNameError for an outcome or a source that does not exist."""
    if outcome not in OUTCOMES[1:]:
        raise UnknownNameError("outcome", outcome, OUTCOMES[1:])
    if source not in SOURCES:
        raise UnknownNameError("source of outcomes", source, SOURCES)


def label_bag(bag: Path | str, outcome: str, source: str = "operator") -> None:
    """Notes the outcome of a bag's episode, and who says so, in the custom_data of its metadata.yaml.

    Args:
        bag: a rosbag2 folder. outcome: 'success', 'near_success', 'failure' or 'aborted'. source: see `SOURCES`.

    Raises:
        UnknownNameError: there is no such outcome or source.
        BagError: no bag, or its metadata.yaml cannot be read or written.
    """
    check_label(outcome, source)
    path = Path(bag) / "metadata.yaml"
    metadata = read_metadata(Path(bag))
    information = metadata["rosbag2_bagfile_information"]
    information["custom_data"] = (information.get("custom_data") or {}) | {
        "outcome": outcome,
        "outcome_source": source,
    }
    try:
        write_metadata(path, metadata)
    except OSError as error:
        raise BagError(f"The label cannot be written to '{path}': {error.strerror}.") from error


def read_metadata(bag: Path) -> dict[str, Any]:
    """What metadata.yaml of a bag says.

    Raises:
        BagError: there is none, or it is damaged.
    """
    path = bag / "metadata.yaml"
    try:
        metadata = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BagError(f"'{bag}' is not a bag: it has no metadata.yaml; try `wvl bag repair {bag}`.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise BagError(f"'{path}' cannot be read; try `wvl bag repair {bag}`.") from error
    if not isinstance(metadata, dict) or not isinstance(metadata.get("rosbag2_bagfile_information"), dict):
        raise BagError(f"'{path}' is damaged; try `wvl bag repair {bag}`.")
    custom = metadata["rosbag2_bagfile_information"].get("custom_data")
    if custom is not None and not isinstance(custom, dict):
        raise BagError(f"'{path}' is damaged; try `wvl bag repair {bag}`.")
    return metadata


def write_metadata(path: Path, metadata: dict[str, Any]) -> None:
    """Writes metadata.yaml, whole or not at all."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(yaml.safe_dump(metadata, sort_keys=False), encoding="utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
