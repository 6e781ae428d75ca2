"""An episode on its way into a dataset: its videos are encoded as the images come."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from wvl_ros.errors import DatasetError
from wvl_ros.sans.episode import Episode
from wvl_ros.sans.store.checked_files import digest_file
from wvl_ros.sans.store.format import DatasetFormat
from wvl_ros.sans.store.journal import new_draft
from wvl_ros.sans.store.statistics import PictureStatistics, Statistics
from wvl_ros.sans.store.video import Picture, VideoWriter

if TYPE_CHECKING:
    from wvl_ros.sans.dataset import Dataset


class Draft:
    """A context that takes an episode's images, then its numbers; nothing stays behind unless it is committed.

    Images of different cameras may be added from different threads at once: encoding releases the GIL.
    """

    def __init__(self, dataset: Dataset, image_stride: int = 1) -> None:
        """Use `Dataset.draft`, which holds the dataset's lock meanwhile."""
        if image_stride < 1:
            raise DatasetError(f"An episode's image stride cannot be {image_stride}; it is 1 or more.")
        self._dataset, self._stride = dataset, image_stride
        self.folder, self._owner = new_draft(dataset.root)
        self._cameras: dict[str, _Camera] = {}
        self._open = True

    def __enter__(self) -> Draft:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def add_image(self, camera: str, image: Picture) -> None:
        """Adds the next image of a camera: that of steps 0, s, 2 s, ... with s = `image_stride`.

        Args:
            camera: one of the dataset's.
            image: uint8 (H, W, 3) RGB of the dataset's size; may be reused after the call.

        Raises:
            DatasetError: no such camera, another size, or the disk is full.
        """
        if camera not in self._cameras:
            format = self._dataset.format
            if camera not in format.cameras:
                raise DatasetError(
                    f"The dataset '{self._dataset.root}' has no camera '{camera}'; it has: "
                    f"{', '.join(format.cameras) or 'none'}."
                )
            self._cameras[camera] = _Camera(self.folder / f"{camera}.mp4", camera, format)
        self._cameras[camera].add(image, self._stride)

    def commit(
        self, episode: Episode, *, origin: str = "", fingerprint: str = "", report: dict[str, object] | None = None
    ) -> int:
        """Adds the episode to the dataset, whole or not at all.

        Args:
            episode: its numbers and texts; the images are those added.
            origin: what it was converted from, a name for people.
            fingerprint: an episode that has it already is not added again.
            report: what the conversion said; must fit into JSON.

        Returns:
            The episode's index; that of the older one with the same fingerprint.

        Raises:
            DatasetError: the images do not fit the steps, or the episode does not fit the dataset; nothing is added.
        """
        if not self._open:
            raise DatasetError("This draft is closed; make a new one for each episode.")
        if episode.image_stride != self._stride and self._dataset.format.cameras:
            raise DatasetError(
                f"The episode has an image every {episode.image_stride} steps, but the draft takes one every "
                f"{self._stride}; give draft(image_stride={episode.image_stride})."
            )
        steps = len(episode)
        images = (steps - 1) // self._stride + 1
        for camera in self._dataset.format.cameras:
            got = self._cameras[camera].images if camera in self._cameras else 0
            if got != images:
                raise DatasetError(f"Camera '{camera}' has {got} images where {steps} steps call for {images}.")
        videos: dict[str, tuple[Path, str]] = {}
        stats: dict[str, Statistics] = {}
        for camera in self._dataset.format.cameras:
            writer = self._cameras[camera]
            writer.finish(steps)
            videos[camera], stats[camera] = (writer.path, digest_file(writer.path)), writer.statistics.result()
        return self._dataset._add(episode, videos, stats, origin, fingerprint, report or {})

    def close(self) -> None:
        """Removes what was not committed."""
        if not self._open:
            return
        self._open = False
        for camera in self._cameras.values():
            camera.writer.abort()
        shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._owner)


class _Camera:
    def __init__(self, path: Path, name: str, format: DatasetFormat) -> None:
        self.path = path
        self.writer = VideoWriter(path, format.cameras[name], format.fps, format.codec)
        self.statistics = PictureStatistics()

    @property
    def images(self) -> int:
        return self.statistics.pictures

    def add(self, image: Picture, stride: int) -> None:
        self.writer.hold(self.images * stride - self.writer.frames)
        self.writer.write(image)
        self.statistics.add(image)

    def finish(self, steps: int) -> None:
        self.writer.hold(steps - self.writer.frames)
        self.writer.close()
