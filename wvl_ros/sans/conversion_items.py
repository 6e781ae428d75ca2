"""The episodes of a source, one after the other: a name, a fingerprint, and a function that reads it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from wvl_ros.errors import EpisodeError
from wvl_ros.sans.bags.bag_episode import BagEpisode
from wvl_ros.sans.bags.reader import bag_episodes
from wvl_ros.sans.bags.streams import Bag
from wvl_ros.sans.conversion_sources import BAG, DROID, FILE, LEROBOT, SANS, Source, source_digest
from wvl_ros.sans.dataset import Dataset
from wvl_ros.sans.episode import Episode
from wvl_ros.worlds.recorded import resize

if TYPE_CHECKING:
    from wvl_ros.sans.conversion import ConversionOptions

Picture = NDArray[np.uint8]


class Images(Protocol):
    """The images of a camera, in order, one in memory at a time."""

    def __iter__(self) -> Iterator[Picture]: ...
    def __len__(self) -> int: ...
    def size(self) -> tuple[int, int]: ...


Loaded = tuple[Episode, Mapping[str, Images], dict[str, Any]]


@dataclass(frozen=True)
class Item:
    """An episode to convert.

    Attributes:
        name: of the episode in its source.
        origin: where it comes from, for people.
        fingerprint: the same whenever and wherever this episode is met again.
        load: its numbers, its images and what is to be said of it; may raise a WvlError.
    """

    name: str
    origin: str
    fingerprint: str
    load: Callable[[], Loaded]


def items(source: Source, options: ConversionOptions, known: Mapping[str, int]) -> Iterator[tuple[int, Item]]:
    """Each episode of a source, and how many there are.

    Args:
        known: fingerprints that need not be read, and how many episodes their sources have.

    Raises:
        EpisodeError and others of WvlError: the source cannot be read at all.
    """
    if source.error:
        raise EpisodeError(source.error)
    size = options.alignment.size
    if source.kind == BAG:
        yield from _bag(source, options, known)
    elif source.kind in (DROID, FILE):
        digest = f"{source.kind}:{source_digest(source)}"
        yield 1, Item(source.name, source.name, digest, lambda: _loaded(_read(source), size))
    elif source.kind == LEROBOT:
        from wvl_ros.sans.lerobot import read_lerobot

        rows = list(read_lerobot(source.path))[source.part[0] :: source.part[1]]
        for name, read in rows:
            yield len(rows), Item(name, name, f"lerobot:{name}", lambda read=read: _loaded(read(), size))  # type: ignore[misc]
    elif source.kind == SANS:
        yield from _dataset(source, size)


def _bag(source: Source, options: ConversionOptions, known: Mapping[str, int]) -> Iterator[tuple[int, Item]]:
    digest = f"bag:{source_digest(source)}"
    there = [(name, count) for name, count in known.items() if name.startswith(f"{digest}:")]
    if there and there[0][1] == len(there):  # all of it is in the dataset: nothing to read
        for name, count in there:
            yield count, Item(name, source.name, name, _never)
        return
    with Bag(source.path) as bag:
        episodes = bag_episodes(bag, mapping=options.mapping, namespace=options.namespace, options=options.alignment)
        for name, read in episodes:

            def load(name: str = name, read: Callable[[], BagEpisode] = read) -> Loaded:
                found = read()
                label = source.name if len(episodes) == 1 else f"{source.name}-{name}"
                episode = replace(found.episode, episode_id=found.episode.episode_id or label)
                return episode, found.cameras, found.report | {"episodes_in_source": len(episodes)}

            yield len(episodes), Item(name, source.name, f"{digest}:{name}", load)


def _never() -> Loaded:
    raise EpisodeError("This episode is in the dataset already.")


def _read(source: Source) -> Episode:
    if source.kind == FILE:
        return Episode.load(source.path)
    from wvl_ros.sans.droid import read_droid

    return read_droid(source.path)


def _dataset(source: Source, size: tuple[int, int] | None) -> Iterator[tuple[int, Item]]:
    dataset = Dataset.open(source.path)
    records = dataset.records[source.part[0] :: source.part[1]]
    for record in records:
        origin = record.origin or f"{source.name}#{record.index}"
        fingerprint = record.fingerprint or f"sans:{_numbers_digest(dataset.read(record.index, images=False))}"

        def load(index: int = record.index, report: dict[str, Any] = record.report) -> Loaded:
            episode = dataset.read(index, images=False)
            images = {name: _DatasetImages(dataset, index, name, size) for name in dataset.format.cameras}
            return episode, images, dict(report)

        yield len(records), Item(record.episode_id, origin, fingerprint, load)


def _numbers_digest(episode: Episode) -> str:
    value = hashlib.sha256(f"{episode.episode_id} {episode.source}".encode())
    for array in (episode.joint_position, episode.cartesian_position, episode.gripper_position, episode.action):
        value.update(np.ascontiguousarray(array).tobytes())
    return value.hexdigest()[:32]


def _loaded(episode: Episode, size: tuple[int, int] | None) -> Loaded:
    """An episode in memory as numbers and images."""
    images = {name: _StackedImages(stack, size) for name, stack in episode.images.items()}
    return replace(episode, images={}), images, {"steps": len(episode), "image_stride": episode.image_stride}


@dataclass(frozen=True)
class _StackedImages:
    stack: Picture
    scale: tuple[int, int] | None

    def __iter__(self) -> Iterator[Picture]:
        for image in self.stack:
            yield resize(image, *self.scale) if self.scale else image

    def __len__(self) -> int:
        return len(self.stack)

    def size(self) -> tuple[int, int]:
        return self.scale or (self.stack.shape[1], self.stack.shape[2])


@dataclass(frozen=True)
class _DatasetImages:
    dataset: Dataset
    index: int
    camera: str
    scale: tuple[int, int] | None

    def __iter__(self) -> Iterator[Picture]:
        for image in self.dataset.images(self.index, self.camera):
            yield resize(image, *self.scale) if self.scale else image

    def __len__(self) -> int:
        record = self.dataset.records[self.index]
        return (record.length - 1) // record.image_stride + 1

    def size(self) -> tuple[int, int]:
        height, width = self.dataset.format.cameras[self.camera]
        return self.scale or (height, width)
