"""Episodes decoded once into memory-mapped files, for trainers that read the same pixels again and again.

A cache is a folder `.cache/<recipe>` beside the episodes: `frames.bin` and `numbers.bin`, which only grow, and
`episodes.jsonl`, which says where each episode lies. An episode counts once its line is there, so a build that was
killed goes on where it was, and new episodes are added without touching the others.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from wvl_ros.errors import EpisodeError
from wvl_ros.sans.episode import Episode
from wvl_ros.sans.episodes import EpisodeEntry, list_episodes

FOLDER = ".cache"
_FILES = ("frames.bin", "numbers.bin", "episodes.jsonl")


@dataclass(frozen=True)
class Recipe:
    """What a cache keeps of an episode.

    Attributes:
        name: of its folder; says everything that frames and numbers depend on.
        frame_shape: of one frame, uint8. columns, dtype: of the numbers of one step.
        frames: the frames of an episode from first to last, in blocks (k, *frame_shape).
        numbers: (N, columns), a row a step. facts: further facts that fit into JSON.
    """

    name: str
    frame_shape: tuple[int, ...]
    columns: int
    dtype: type[np.floating[Any]]
    frames: Callable[[EpisodeEntry], Iterator[NDArray[np.uint8]]]
    numbers: Callable[[Episode], NDArray[np.floating[Any]]]
    facts: Callable[[Episode], dict[str, Any]] = lambda _: {}


@dataclass(frozen=True)
class Cache:
    """Decoded episodes. Rows of `frames` and `numbers` that no episode points at belong to former versions.

    Attributes:
        frames: uint8 memory map (F, *frame_shape). numbers: memory map (S, columns).
        entries, facts: E headers, and what the recipe noted of each episode.
        frame_start, frame_count, step_start, step_count: int64 (E,).
        fingerprint: changes with the episodes, their labels and the recipe.
    """

    frames: NDArray[np.uint8]
    numbers: NDArray[np.floating[Any]]
    entries: list[EpisodeEntry]
    facts: list[dict[str, Any]]
    frame_start: NDArray[np.int64]
    frame_count: NDArray[np.int64]
    step_start: NDArray[np.int64]
    step_count: NDArray[np.int64]
    fingerprint: str

    def __len__(self) -> int:
        """Number of episodes, E."""
        return len(self.entries)


def open_cache(path: Path | str, recipe: Recipe, *, limit: int | None = None, folder: Path | None = None) -> Cache:
    """The cache of the episodes at `path`; what it lacks is decoded first, with a progress bar on a terminal.

    Several processes may open one cache at once: one of them builds, the others wait for it.

    Args:
        path: a SANS dataset, or a folder of episode files.
        limit: take only so many episodes, evenly over all.
        folder: where caches are kept; by default the hidden folder `.cache` in `path`.

    Raises:
        EpisodeError: no episodes, one is damaged or does not fit the recipe, or the folder cannot be written.
    """
    everything = entries = list_episodes(path)
    if limit is not None and limit < len(entries):
        entries = [entries[i] for i in np.linspace(0, len(entries) - 1, limit).round().astype(int)]
    path = Path(path).expanduser()
    target = (folder or (path.parent if path.is_file() else path) / FOLDER) / recipe.name
    try:
        target.mkdir(parents=True, exist_ok=True)
        with _locked(target):
            lines = _complete(target, recipe, entries, everything)
            rows = max(line["frame"] + line["frames"] for line in lines)
            frames = np.memmap(target / _FILES[0], np.uint8, "r", shape=(rows, *recipe.frame_shape))
            rows = max(line["step"] + line["steps"] for line in lines)
            numbers = np.memmap(target / _FILES[1], recipe.dtype, "r", shape=(rows, recipe.columns))
    except OSError as error:
        raise EpisodeError(
            f"The cache '{target}' cannot be written ({error.strerror}); make the folder writable, with room in it."
        ) from error
    columns = {key: np.array([line[key] for line in lines], np.int64) for key in ("frame", "frames", "step", "steps")}
    key = json.dumps([recipe.name, [(entry.content, entry.label) for entry in entries]])
    return Cache(
        frames=frames,
        numbers=numbers,
        entries=entries,
        facts=[line["facts"] for line in lines],
        frame_start=columns["frame"],
        frame_count=columns["frames"],
        step_start=columns["step"],
        step_count=columns["steps"],
        fingerprint=hashlib.sha256(key.encode()).hexdigest()[:16],
    )


def _complete(
    target: Path, recipe: Recipe, entries: Sequence[EpisodeEntry], everything: Sequence[EpisodeEntry]
) -> list[dict[str, Any]]:
    """Adds the episodes that are missing; the line of each entry."""
    known = _lines(target)
    if _wasteful(known, everything):
        for name in reversed(_FILES):  # the index first; whoever has the others mapped keeps them
            (target / name).unlink(missing_ok=True)
        known = []
    by_name = {line["name"]: line for line in known}
    size = int(np.prod(recipe.frame_shape))
    width = recipe.columns * np.dtype(recipe.dtype).itemsize
    frame = max((line["frame"] + line["frames"] for line in known), default=0)
    step = max((line["step"] + line["steps"] for line in known), default=0)
    todo = [entry for entry in entries if not _current(by_name.get(entry.name), entry)]
    if not todo:
        return [by_name[entry.name] for entry in entries]
    with (
        _writable(target / _FILES[0], frame * size) as frames,
        _writable(target / _FILES[1], step * width) as numbers,
        _writable(target / _FILES[2], sum(len(_text(line)) for line in known)) as index,
    ):
        for entry in tqdm(todo, desc="reading episodes", unit="episode", disable=None):
            old = by_name.get(entry.name)
            episode = entry.load(images=False)
            place = {"frame": frame, "frames": 0}
            if old is not None and old["content"] == entry.content:  # only its label is new
                place = {"frame": old["frame"], "frames": old["frames"]}
            else:
                for block in recipe.frames(entry):
                    frames.write(np.ascontiguousarray(block, np.uint8).data)
                    place["frames"] += len(block)
                frame += place["frames"]
            rows = np.ascontiguousarray(recipe.numbers(episode), recipe.dtype)
            numbers.write(rows.data)
            line = {"name": entry.name, "content": entry.content, "label": entry.label, **place}
            line |= {"step": step, "steps": len(rows), "facts": recipe.facts(episode)}
            step += len(rows)
            frames.flush()
            numbers.flush()
            index.write(_text(line))  # last: now the episode counts
            index.flush()
            by_name[entry.name] = line
    return [by_name[entry.name] for entry in entries]


def _current(line: dict[str, Any] | None, entry: EpisodeEntry) -> bool:
    return line is not None and line["content"] == entry.content and line["label"] == entry.label


def _wasteful(known: list[dict[str, Any]], everything: Sequence[EpisodeEntry]) -> bool:
    """Whether more than half of the frames belong to episodes that are no more."""
    last = {line["name"]: line for line in known}
    contents = {entry.content for entry in everything}
    total = max((line["frame"] + line["frames"] for line in known), default=0)
    return sum(line["frames"] for line in last.values() if line["content"] in contents) < total / 2


def _lines(target: Path) -> list[dict[str, Any]]:
    """The complete lines of the index whose frames and numbers are on disk."""
    path = target / _FILES[2]
    if not path.is_file() or not all((target / name).is_file() for name in _FILES):
        return []
    found = []
    for text in path.read_bytes().splitlines(keepends=True):
        try:
            line = json.loads(text) if text.endswith(b"\n") else None
        except ValueError:
            line = None
        if line is None:
            break
        found.append(line)
    return found


def _text(line: dict[str, Any]) -> bytes:
    return json.dumps(line).encode() + b"\n"


@contextmanager
def _writable(path: Path, size: int) -> Iterator[Any]:
    """A file opened at its end, cut to what counts of it; whatever lies beyond is of a build that was killed."""
    with path.open("ab") as file:
        if file.tell() < size:
            raise EpisodeError(f"The cache file '{path}' is too short; delete the folder '{path.parent}'.")
        file.truncate(size)
        yield file


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    with (target / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)
