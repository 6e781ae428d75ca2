"""What a training run tells: lines of `log.jsonl`, and the same as curves and pictures for TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

LOG_FILE = "log.jsonl"
BOARD_FOLDER = "tensorboard"


class Journal:
    """The log of a run in a folder; `writes` is False for all but the first of several processes.

    A resumed run continues it: what was told after update `step`, from which it goes on, is dropped.
    """

    def __init__(self, folder: Path, step: int = 0, *, writes: bool = True) -> None:
        self.folder, self.writes = folder, writes
        self._board: Any = None
        if writes:
            folder.mkdir(parents=True, exist_ok=True)
        if writes and (folder / LOG_FILE).is_file():
            _keep_lines(folder / LOG_FILE, step)
        self._purge = step + 1 if step else None

    def add(self, kind: str, step: int, seconds: float, facts: Mapping[str, Any]) -> None:
        """One line of the log; every number in it is also a point of a curve."""
        if not self.writes:
            return
        with (self.folder / LOG_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, "step": step, "seconds": round(seconds, 1), **facts}) + "\n")
        for name, value in _numbers(facts):
            self.board.add_scalar(f"{kind}/{name}", value, step)

    def picture(self, name: str, path: Path, step: int) -> None:
        """A PNG."""
        if self.writes and path.is_file():
            pixels = np.asarray(Image.open(path).convert("RGB"))
            self.board.add_image(name, pixels, step, dataformats="HWC")

    @property
    def board(self) -> Any:
        """TensorBoard's writer, made when it is first needed."""
        if self._board is None:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(self.folder / BOARD_FOLDER), purge_step=self._purge, flush_secs=30)
        return self._board

    def close(self) -> None:
        """Writes all to disk."""
        if self._board is not None:
            self._board.close()
            self._board = None


def _keep_lines(path: Path, step: int) -> None:
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            if line.endswith("\n") and int(json.loads(line)["step"]) <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):  # cut off when the run was killed
            continue
    part = path.with_name(f".{path.name}.part")
    part.write_text("".join(kept), encoding="utf-8")
    part.replace(path)


def _numbers(facts: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{name}", float(value)
