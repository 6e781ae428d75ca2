"""What can be converted: bags, DROID episodes, LeRobot and SANS datasets and episode files, found below given paths."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from wvl_ros.errors import BagError
from wvl_ros.sans.bags.streams import METADATA, SUFFIXES
from wvl_ros.sans.droid import ANNOTATION
from wvl_ros.sans.lerobot_files import is_lerobot
from wvl_ros.sans.store.format import is_dataset

BAG, DROID, LEROBOT, SANS, FILE = "bag", "droid", "lerobot", "sans", "episode file"
_DEPTH = 3
_BLOCK = 1 << 16


@dataclass(frozen=True)
class Source:
    """Something that holds one episode or more.

    Attributes:
        kind: one of 'bag', 'droid', 'lerobot', 'sans', 'episode file', or '' for what is refused with `error`.
        path: of the folder or file.
        part: (i, n): of a dataset, every n-th episode from the i-th on.
        error: why it cannot be converted.
    """

    kind: str
    path: Path
    part: tuple[int, int] = (0, 1)
    error: str = ""

    @property
    def name(self) -> str:
        """A short name for people."""
        return self.path.parent.name if self.kind == BAG and self.path.name == "bag" else self.path.name


def find_sources(paths: Iterable[Path], *, parts: int = 1) -> tuple[list[Source], list[Path]]:
    """The sources at or below paths, each once, and recordings that are not finished.

    Args:
        paths: bags, episodes, datasets, or folders of them.
        parts: into how many parts datasets are split, to convert them side by side.
    """
    found: dict[Path, Source] = {}
    unfinished: list[Path] = []
    for path in map(Path.expanduser, paths):
        sources = list(_below(path, 0, unfinished)) if path.exists() else []
        if not sources:
            sources = [Source("", path, error=_nothing(path, unfinished))]
        for source in sources:
            found.setdefault(source.path.resolve(), source)
    split = []
    for source in found.values():
        count = parts if source.kind in (LEROBOT, SANS) else 1
        split += [replace(source, part=(i, count)) for i in range(count)]
    return split, unfinished


def _below(path: Path, depth: int, unfinished: list[Path]) -> Iterator[Source]:
    if path.is_file():
        if path.suffix in SUFFIXES:
            yield Source(BAG, path)
        elif path.suffix == ".safetensors":
            yield Source(FILE, path)
        elif depth == 0:
            yield Source("", path, error=f"'{path}' is no bag, no episode and no dataset.")
    elif (path / METADATA).is_file() or any(path.glob("*.mcap")) or any(path.glob("*.db3")):
        yield Source(BAG, path)
    elif (path / "bag").is_dir():
        yield Source(BAG, path / "bag")
    elif (path / ANNOTATION).is_file():
        yield Source(DROID, path)
    elif is_dataset(path):
        yield Source(SANS, path)
    elif is_lerobot(path):
        yield Source(LEROBOT, path)
    elif depth < _DEPTH:
        for child in sorted(path.iterdir()):
            if child.name.startswith("."):
                if child.name.endswith(".part") and child.is_dir():
                    unfinished.append(child)
            else:
                yield from _below(child, depth + 1, unfinished)


def _nothing(path: Path, unfinished: list[Path]) -> str:
    if not path.exists():
        return f"There is no '{path}'."
    if any(path in part.parents for part in unfinished):
        return f"'{path}' holds only recordings that are not finished; run `wvl bag repair {path}`."
    return f"There is nothing to convert in '{path}': no bag, no DROID episode, no dataset, no episode file."


def file_digest(paths: Iterable[Path]) -> str:
    """A key of files by their sizes, beginnings and ends; quick for large bags, the same wherever they lie.

    Raises:
        BagError: a file cannot be read.
    """
    value = hashlib.sha256()
    for path in paths:
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                value.update(size.to_bytes(8, "little") + file.read(_BLOCK))
                file.seek(max(0, size - _BLOCK))
                value.update(file.read(_BLOCK))
        except OSError as error:
            raise BagError(f"'{path}' cannot be read: {error.strerror}.") from error
    return value.hexdigest()[:32]


def source_digest(source: Source) -> str:
    """`file_digest` of a source's data: for bags without metadata.yaml, where labels are noted."""
    path = source.path
    if path.is_file():
        return file_digest([path])
    names = ("*.mcap", "*.db3", "*.zstd") if source.kind == BAG else (ANNOTATION, "*.mp4")
    return file_digest(sorted({file for name in names for file in path.glob(name)}))
