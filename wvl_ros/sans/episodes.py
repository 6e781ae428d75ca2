"""Episodes wherever they are kept, headers first: a SANS dataset, an episode file, or folders of episode files."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wvl_ros.errors import EpisodeError
from wvl_ros.sans.episode import FORMAT, Episode

if TYPE_CHECKING:
    from wvl_ros.sans.dataset import Dataset, EpisodeRecord

BLOCK = 64  # images decoded at a time


@dataclass(frozen=True)
class EpisodeEntry(ABC):
    """What is known of an episode before its numbers and images are read.

    Attributes:
        name: of the episode in its folder or dataset, unique there.
        content: changes when its numbers or images do. label: changes when its outcome (and so its rewards) may have.
        length: N observations. cameras: those with images, at each `image_stride`-th step.
    """

    name: str
    content: str
    label: str
    episode_id: str
    length: int
    image_stride: int
    cameras: tuple[str, ...]
    task: str
    instruction: str
    outcome: str
    outcome_source: str
    source: str
    policy: str
    world_model: str
    iteration: int

    @abstractmethod
    def load(self, *, images: bool = True) -> Episode:
        """The episode, with or without its images; EpisodeError when it is damaged."""

    @abstractmethod
    def blocks(self, cameras: Sequence[str]) -> Iterator[dict[str, NDArray[np.uint8]]]:
        """The images of some cameras from first to last, a block (k, H, W, 3) of each at a time."""

    @property
    def image_count(self) -> int:
        """Images of a camera, M."""
        return (self.length - 1) // self.image_stride + 1

    def need(self, cameras: Sequence[str]) -> None:
        """Raises an EpisodeError that names a camera the episode lacks."""
        missing = [camera for camera in cameras if camera not in self.cameras]
        if missing:
            raise EpisodeError(
                f"Episode '{self.episode_id or self.name}' lacks the camera '{missing[0]}'; it has: "
                f"{', '.join(self.cameras) or 'none'}."
            )


@dataclass(frozen=True)
class FileEntry(EpisodeEntry):
    """An episode file (*.safetensors)."""

    path: Path
    disturbed: bool

    @classmethod
    def read(cls, path: Path, name: str) -> FileEntry:
        """By the file's header alone.

        Raises:
            EpisodeError: it is no episode.
        """
        try:
            status = path.stat()
            header = _read_header(path, status.st_size)
            meta = header.pop("__metadata__", {})
            if meta.get("format") != FORMAT:
                raise EpisodeError(f"'{path}' is not an episode of wvl_ros (format: {meta.get('format', 'none')}).")
            return cls(
                name=name,
                content=f"{name} {status.st_size} {status.st_mtime_ns}",
                label="",  # a new label makes a new file
                episode_id=meta["episode_id"],
                length=int(header["joint_position"]["shape"][0]),
                image_stride=int(meta["image_stride"]),
                cameras=tuple(n.removeprefix("images.") for n in sorted(header) if n.startswith("images.")),
                task=meta["task"],
                instruction=meta["instruction"],
                outcome=meta["outcome"],
                outcome_source=meta.get("outcome_source", ""),
                source=meta["source"],
                policy=meta.get("policy", ""),
                world_model=meta.get("world_model", ""),
                iteration=int(meta.get("iteration", 0)),
                path=path,
                disturbed="disturbed" in json.loads(meta["extra"]),
            )
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise EpisodeError(f"'{path}' cannot be read as an episode: {error}") from error

    def load(self, *, images: bool = True) -> Episode:
        """See `EpisodeEntry`."""
        return Episode.load(self.path, images=images)

    def blocks(self, cameras: Sequence[str]) -> Iterator[dict[str, NDArray[np.uint8]]]:
        """See `EpisodeEntry`."""
        self.need(cameras)
        episode = self.load()
        for start in range(0, self.image_count, BLOCK):
            yield {camera: episode.images[camera][start : start + BLOCK] for camera in cameras}


def _read_header(path: Path, size: int) -> dict[str, Any]:
    """What a safetensors file says of its tensors; `safe_open` would read the whole of it from the disk, megabytes.

    Raises:
        ValueError: it is no such file, or cut off.
    """
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or 8 + length > size:
            raise ValueError("it is no safetensors file, or it is cut off")
        header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise ValueError("its header is no table")
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    if 8 + length + max(ends, default=0) != size:
        raise ValueError("it is cut off, or something was added to it")
    return header


@dataclass(frozen=True)
class DatasetEntry(EpisodeEntry):
    """An episode of a SANS dataset."""

    dataset: Dataset
    index: int

    @classmethod
    def of(cls, dataset: Dataset, record: EpisodeRecord) -> DatasetEntry:
        """From what the dataset knows of it."""
        return cls(
            name=f"#{record.index}",
            content=f"#{record.index} {record.episode_id} {record.length}",  # a dataset only grows
            label=record.outcome,
            episode_id=record.episode_id,
            length=record.length,
            image_stride=record.image_stride,
            cameras=tuple(dataset.format.cameras),
            task=record.task,
            instruction=record.instruction,
            outcome=record.outcome,
            outcome_source=record.outcome_source,
            source=record.source,
            policy=record.policy,
            world_model=record.world_model,
            iteration=record.iteration,
            dataset=dataset,
            index=record.index,
        )

    def load(self, *, images: bool = True) -> Episode:
        """See `EpisodeEntry`."""
        return self.dataset.read(self.index, images=images)

    def blocks(self, cameras: Sequence[str]) -> Iterator[dict[str, NDArray[np.uint8]]]:
        """See `EpisodeEntry`."""
        self.need(cameras)
        streams = {camera: iter(self.dataset.images(self.index, camera)) for camera in cameras}
        for start in range(0, self.image_count, BLOCK):
            count = min(BLOCK, self.image_count - start)
            yield {camera: np.stack([next(stream) for _ in range(count)]) for camera, stream in streams.items()}


def list_episodes(path: Path | str) -> list[EpisodeEntry]:
    """The episodes of a SANS dataset, of a folder and the folders below it (but for hidden ones), or of one file.

    Raises:
        EpisodeError: there are none, or one of them is damaged.
    """
    path = Path(path).expanduser()
    if (path / "meta").is_dir():  # folders of episode files do without pyarrow
        from wvl_ros.sans.dataset import Dataset

        dataset = Dataset.open(path)
        entries: list[EpisodeEntry] = [DatasetEntry.of(dataset, record) for record in dataset.records]
        if not entries:
            raise EpisodeError(f"The dataset '{path}' holds no episodes yet; add some with `wvl convert`.")
        return entries
    base = path.parent if path.is_file() else path
    return [FileEntry.read(file, str(file.relative_to(base))) for file in episode_files(path)]


def episode_files(folder: Path | str) -> list[Path]:
    """The episode files of a folder and its sub-folders (but for hidden ones), sorted; of a file, itself.

    Raises:
        EpisodeError: there is no such folder, or no episode in it.
    """
    folder = Path(folder)
    if folder.is_file():
        return [folder]
    found = [
        path
        for path in sorted(folder.rglob("*.safetensors"))
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    if not found:
        raise EpisodeError(
            f"'{folder}' holds no episodes: it is no SANS dataset and has no episode files (*.safetensors); make some "
            "with `wvl collect`, or a dataset with `wvl convert`."
        )
    return found


def iter_episodes(path: Path | str, *, images: bool = True) -> Iterator[Episode]:
    """The episodes of `list_episodes`, read one after another."""
    for entry in list_episodes(path):
        yield entry.load(images=images)
