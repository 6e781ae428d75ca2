"""SANS on disk: a LeRobotDataset v3.0 folder that grows by whole episodes, with a checksum for each file.

Besides LeRobot's files there is `meta/sans.json` (the format, and checksums of the files in meta/) and columns of our
own in meta/episodes (checksums of the data and the videos, labels, conversion reports). Any number of processes may
read and write at once; see `journal`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from wvl_ros.errors import DatasetError, EpisodeError
from wvl_ros.sans.episode import OUTCOMES, Episode
from wvl_ros.sans.store import catalog, frames, updates
from wvl_ros.sans.store.catalog import EpisodeRecord
from wvl_ros.sans.store.checked_files import digest, digest_file, read_checked
from wvl_ros.sans.store.draft import Draft
from wvl_ros.sans.store.format import DatasetFormat, data_file, is_dataset, video_file
from wvl_ros.sans.store.journal import Change, ReadOnlyError, locked
from wvl_ros.sans.store.statistics import Statistics
from wvl_ros.sans.store.video import read_frames
from wvl_ros.worlds.recorded import commanded_poses

__all__ = ["Dataset", "DatasetFormat", "Draft", "EpisodeRecord", "is_dataset"]

T = TypeVar("T")
RETRIES = 5


class Dataset:
    """A SANS dataset: episodes to read in any order and to append.

    Attributes:
        root: its folder.
    """

    def __init__(self, root: Path, state: catalog.Catalog) -> None:
        """Use `create`, `open` or `open_or_create`."""
        self.root = root
        self._state = state
        self._sound: dict[Path, tuple[int, int, int]] = {}  # videos whose checksum was right, and their stat

    @classmethod
    def create(cls, root: Path | str, format: DatasetFormat) -> Dataset:
        """A new, empty dataset.

        Raises:
            DatasetError: something else is there, or the disk refuses.
        """
        root = Path(root).expanduser()
        updates.make_folder(root)
        with locked(root):
            if is_dataset(root):
                raise DatasetError(f"There is a dataset at '{root}' already; open it, or choose another folder.")
            updates.write_empty(root, format)
        return cls.open(root)

    @classmethod
    def open(cls, root: Path | str) -> Dataset:
        """A dataset that is there.

        Raises:
            DatasetError: none is there, it is damaged or of another version.
        """
        root = Path(root).expanduser()
        return cls(root, _settled(root, lambda: catalog.load(root)))

    @classmethod
    def open_or_create(cls, root: Path | str, format: DatasetFormat) -> Dataset:
        """The dataset there, or a new one.

        Raises:
            DatasetError: the one there differs in fps, cameras, sizes or codec, or is damaged.
        """
        root = Path(root).expanduser()
        if not is_dataset(root):
            try:
                return cls.create(root, format)
            except DatasetError:
                if not is_dataset(root):  # else another process was faster
                    raise
        dataset = cls.open(root)
        if dataset.format != format:
            raise DatasetError(
                f"The dataset '{root}' has {dataset.format}, but what is to be added has {format}; choose another "
                "folder, or convert with its settings."
            )
        return dataset

    @property
    def format(self) -> DatasetFormat:
        """What all its episodes have in common."""
        return self._state.format

    @property
    def records(self) -> Sequence[EpisodeRecord]:
        """What is known of each episode, as of the last `open`, `refresh` or change by this object."""
        return self._state.records

    def __len__(self) -> int:
        return len(self._state.records)

    def refresh(self) -> None:
        """Takes note of what other writers have committed.

        Raises:
            DatasetError: the dataset is damaged.
        """
        self._state = _settled(self.root, lambda: catalog.load(self.root, self._state))

    def read(self, index: int, *, images: bool = True) -> Episode:
        """An episode; its numbers are bit by bit what was appended, its images what the codec gives.

        Episodes appended in another action space come back as absolute commanded poses.

        Args:
            index: 0 .. len - 1.
            images: False for numbers only.

        Raises:
            DatasetError: no such episode, or its files are missing or damaged.
        """
        columns = self._current(index, lambda: self._columns(index))
        record, row = self._state.records[index], self._state.rows[index]
        stacks = {camera: self._stack(index, camera) for camera in self.format.cameras} if images else {}
        try:
            return frames.to_episode(
                columns,
                images=stacks,
                task=record.task,
                instruction=record.instruction,
                outcome=record.outcome,
                outcome_source=record.outcome_source,
                source=record.source,
                policy=record.policy,
                world_model=record.world_model,
                iteration=record.iteration,
                episode_id=record.episode_id,
                fps=self.format.fps,
                image_stride=record.image_stride,
                commanded_start=row["commanded_start"].copy(),
                extra=json.loads(json.dumps(row["extra"])),
            )
        except EpisodeError as error:
            raise DatasetError(f"Episode {index} of '{self.root}' is damaged: {error}") from error

    def images(self, index: int, camera: str) -> Iterator[NDArray[np.uint8]]:
        """The episode's M images of a camera, uint8 (H, W, 3), one after the other: steps 0, s, 2 s, ...

        Raises:
            DatasetError: no such episode or camera, or the video is missing or damaged.
        """
        record = self._record(index)
        if camera not in self.format.cameras:
            raise DatasetError(f"The dataset '{self.root}' has no camera '{camera}'.")
        name = video_file(index, camera)
        self._current(index, lambda: self._check_video(index, name))
        yield from read_frames(self.root / name, self.format.cameras[camera], record.length, record.image_stride)

    def draft(self, image_stride: int = 1) -> Draft:
        """An episode to come, as a context: `with dataset.draft() as draft: ...`.

        Raises:
            DatasetError: the disk refuses, or the lock is held for long.
        """
        with locked(self.root):
            return Draft(self, image_stride)

    def append(
        self, episode: Episode, *, origin: str = "", fingerprint: str = "", report: dict[str, object] | None = None
    ) -> int:
        """Adds an episode with its images, whole or not at all; see `Draft.commit`."""
        missing = [camera for camera in self.format.cameras if camera not in episode.images]
        other = [camera for camera in episode.images if camera not in self.format.cameras]
        if missing or other:
            raise DatasetError(
                f"The episode has the cameras {', '.join(episode.images) or 'none'}, but the dataset '{self.root}' has "
                f"{', '.join(self.format.cameras) or 'none'}."
            )
        with self.draft(episode.image_stride) as draft:

            def encode(camera: str) -> None:
                for image in episode.images[camera]:
                    draft.add_image(camera, image)

            with ThreadPoolExecutor(max(1, len(episode.images))) as pool:
                list(pool.map(encode, episode.images))
            return draft.commit(episode, origin=origin, fingerprint=fingerprint, report=report)

    def label(self, index: int, outcome: str, *, source: str = "operator") -> None:
        """Says whether an episode succeeded; whole or not at all.

        The rewards follow: all 0, except that a success keeps its rewards, or gets 1 at the last step if it has none.

        Raises:
            DatasetError: no such episode or outcome, or the files are damaged.
        """
        if outcome not in OUTCOMES:
            raise DatasetError(f"An episode's outcome cannot be '{outcome}'; use one of {OUTCOMES[1:]}.")
        with locked(self.root):
            self._state = catalog.load(self.root, self._state)
            record = self._record(index)
            columns = self._columns(index)
            n = record.length
            if outcome != "success":
                columns["reward"] = np.zeros(n, np.float32)
            elif n > 1 and not (columns["reward"] > 0.5).any():
                columns["reward"][-1] = 1.0
            columns |= {"outcome": [outcome] * n, "outcome_source": [source] * n}
            data = frames.to_parquet(columns)
            row = dict(self._state.rows[index])
            row["sha256"] = row["sha256"] | {str(data_file(index)): digest(data)}
            record = replace(record, outcome=outcome, outcome_source=source)
            with Change(self.root) as change:
                change.write(data_file(index), data)
                updates.relabel(change, self._state, record, row, columns["reward"])
                change.commit()
            self._state = catalog.load(self.root, self._state)

    def verify(self, progress: Callable[[int, int], None] | None = None) -> list[str]:
        """Checks every file; see `verification.verify`."""
        from wvl_ros.sans.store.verification import verify

        return verify(self.root, progress)

    def _add(
        self,
        episode: Episode,
        videos: Mapping[str, tuple[Path, str]],
        stats: Mapping[str, Statistics],
        origin: str,
        fingerprint: str,
        report: dict[str, object],
    ) -> int:
        if episode.fps != self.format.fps:
            raise DatasetError(
                f"The episode has {episode.fps:g} steps a second, but the dataset '{self.root}' has "
                f"{self.format.fps:g}; convert it at that rate."
            )
        extra = dict(episode.extra)
        if episode.action_space != "cartesian_position":
            extra["recorded_action_space"] = episode.action_space
        try:
            json.dumps([extra, report], allow_nan=False)
        except (TypeError, ValueError) as error:
            raise DatasetError(f"The episode's extra facts or its report do not fit into JSON: {error}.") from error
        with locked(self.root):
            self._state = catalog.load(self.root, self._state)
            if fingerprint:
                for old in self._state.records:
                    if old.fingerprint == fingerprint:
                        return old.index
            index = len(self)
            record = EpisodeRecord(
                index=index,
                episode_id=episode.episode_id or f"episode_{index:06d}",
                length=len(episode),
                task=episode.task,
                instruction=episode.instruction,
                outcome=episode.outcome,
                outcome_source=episode.outcome_source,
                source=episode.source,
                policy=episode.policy,
                world_model=episode.world_model,
                iteration=episode.iteration,
                image_stride=episode.image_stride,
                origin=origin,
                fingerprint=fingerprint,
                report=report,
            )
            sha256 = {}
            with Change(self.root) as change:
                for camera, (path, sum) in videos.items():
                    name = video_file(index, camera)
                    change.move(path, name)
                    sha256[str(name)] = sum
                updates.append(change, self._state, record, episode, _commands(episode), extra, sha256, stats)
                change.commit()
            self._state = catalog.load(self.root, self._state)
            return index

    def _record(self, index: int) -> EpisodeRecord:
        if not 0 <= index < len(self):
            raise DatasetError(f"The dataset '{self.root}' has {len(self)} episodes; there is no episode {index}.")
        return self._state.records[index]

    def _columns(self, index: int) -> dict[str, Any]:
        name = data_file(index)
        data = read_checked(self.root, name, self._state.rows[index]["sha256"][str(name)])
        columns = frames.from_parquet(data, str(self.root / name))
        if len(columns["index"]) != self._state.records[index].length:
            raise DatasetError(f"'{self.root / name}' has another length than its episode; run wvl verify.")
        return columns

    def _stack(self, index: int, camera: str) -> NDArray[np.uint8]:
        record = self._state.records[index]
        count = (record.length - 1) // record.image_stride + 1
        stack = np.empty((count, *self.format.cameras[camera], 3), np.uint8)
        for i, image in enumerate(self.images(index, camera)):
            stack[i] = image
        return stack

    def _check_video(self, index: int, name: Path) -> None:
        path = self.root / name
        try:
            stat = path.stat()
            mark = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        except OSError:
            mark = (0, 0, 0)  # digest_file says what is wrong
        if self._sound.get(path) != mark:
            if digest_file(path) != self._state.rows[index]["sha256"][str(name)]:
                raise DatasetError(f"'{path}' is not what was written there (its checksum differs); copy it again.")
            self._sound[path] = mark

    def _current(self, index: int, read: Callable[[], T]) -> T:
        """Reads what this object's state says; once more with the newest state, when a writer was at work meanwhile."""
        self._record(index)
        try:
            return read()
        except DatasetError:
            before = self._state
            with suppress(ReadOnlyError), locked(self.root):
                self._state = catalog.load(self.root, before)
                if self._state.rows[index]["sha256"] != before.rows[index]["sha256"]:
                    return read()
            raise


def _commands(episode: Episode) -> NDArray[np.float64]:
    """Commanded poses (N, 7); those of an episode that has them are left as they are, not even clipped."""
    if episode.action_space == "cartesian_position":
        return np.vstack([np.asarray(episode.commanded_start), episode.action])
    return commanded_poses(episode)


def _settled(root: Path, load: Callable[[], T]) -> T:
    """Loads while writers may be at work: what seems damaged is looked at again, at last under the lock."""
    for _ in range(RETRIES):
        try:
            return load()
        except DatasetError:
            if not is_dataset(root):
                raise
            time.sleep(0.005)
    with suppress(ReadOnlyError), locked(root):
        return load()
    return load()
