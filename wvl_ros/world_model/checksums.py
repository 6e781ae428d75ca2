"""SHA-256 sums beside weights: a file that was cut off, damaged or exchanged is found before it is used."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from wvl_ros.errors import CheckpointError

FILE = "checksums.json"
_BLOCK = 1 << 20
_PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # torch.save's zip, and bare pickles
_PICKLED_NAMES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")


def put(part: Path, path: Path) -> None:
    """Renames a finished file to its place and notes its sum.

    Killed at any moment, this leaves a file that fits one of the sums noted: the new one is noted beside the old one
    before the file is exchanged.
    """
    new = _sum(part)
    known = _read(path.parent)
    _write(path.parent, known | {path.name: [*known.get(path.name, []), new]})
    part.replace(path)
    _write(path.parent, known | {path.name: [new]})


def check(path: Path) -> None:
    """Raises a CheckpointError when a file is not the one that was saved; without sums there is nothing to compare."""
    known = _read(path.parent).get(path.name)
    if known and _sum(path) not in known:
        raise CheckpointError(
            f"The weights '{path}' are not those that were saved ({FILE} beside them has another sum): they were cut "
            "off, damaged or exchanged. Copy the folder again."
        )


def refuse_pickle(path: Path) -> None:
    """Raises a CheckpointError when there is a pickle where safetensors is expected: it could run code."""
    if path.is_file():
        with path.open("rb") as file:
            pickled = path if file.read(4).startswith(_PICKLES) else None
    else:
        pickled = next((found for pattern in _PICKLED_NAMES for found in sorted(path.parent.glob(pattern))), None)
    if pickled is not None:
        raise CheckpointError(
            f"'{pickled}' is a pickle, which could run code and is never opened; save the weights as safetensors "
            f"('{path.name}')."
        )


def _sum(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _read(folder: Path) -> dict[str, list[str]]:
    path = folder / FILE
    if not path.is_file():
        return {}
    try:
        table: Any = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): [str(value) for value in values] for name, values in table.items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise CheckpointError(f"'{path}' is damaged ({error}); copy the folder again.") from error


def _write(folder: Path, sums: dict[str, list[str]]) -> None:
    part = folder / f".{FILE}.{os.getpid()}.part"
    part.write_text(json.dumps(sums, indent=2) + "\n", encoding="utf-8")
    part.replace(folder / FILE)
