"""An episode as a bag holds it: numbers aligned and at hand, images still in the bag, decoded one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wvl_ros.errors import BagError, ObservationError
from wvl_ros.sans.bags.alignment import StreamReport, Times, align_images, backward_jumps, report
from wvl_ros.sans.bags.damage import reading
from wvl_ros.sans.bags.images import compressed_image_array, image_array
from wvl_ros.sans.bags.mapping import CameraTopic
from wvl_ros.sans.bags.recording import message_stamp
from wvl_ros.sans.bags.streams import Bag, Stream
from wvl_ros.sans.bags.topics import message_types
from wvl_ros.sans.episode import Episode
from wvl_ros.worlds.recorded import resize

Picture = NDArray[np.uint8]

_HEADED = ("Image", "CompressedImage", "JointState", "PoseStamped", "Reward", "EpisodeStatus")


@dataclass(frozen=True)
class AlignmentOptions:
    """How bags become episodes.

    Attributes:
        allow_holes: hold the value before where a stream has a hole, instead of refusing the episode.
        split_gap: s; a silence of the joint states that long, or a clock that jumps back, ends an episode. None takes
            a bag of other people's nodes as one episode.
        size: (height, width) to scale images to; None as the mapping says.
        task, instruction: for bags that do not tell theirs.
    """

    allow_holes: bool = False
    split_gap: float | None = None
    size: tuple[int, int] | None = None
    task: str = ""
    instruction: str = ""


@dataclass
class Track:
    """A stream sorted by time: `order[i]` is the place in the stream of its i-th message by time."""

    stream: Stream
    times: Times
    order: NDArray[np.int64]
    offset: int | None = None

    @classmethod
    def sort(
        cls, stream: Stream, times: Times, rows: NDArray[np.int64] | None = None, offset: int | None = None
    ) -> Track:
        """Sorts the messages `rows` (all by default) of a stream that has these times in the order of recording."""
        rows = np.arange(len(times)) if rows is None else rows
        order = rows[np.argsort(times[rows], kind="stable")]
        return cls(stream, times[order], order, offset)

    def between(self, first: int, last: int) -> Track:
        """The messages from `first` to `last`, both ns and included."""
        a, b = np.searchsorted(self.times, first, side="left"), np.searchsorted(self.times, last, side="right")
        return Track(self.stream, self.times[a:b], self.order[a:b], self.offset)


class CameraImages:
    """The images of an episode from one camera.

    Args:
        bag: open as long as images are read.
        stream: of the camera.
        chosen: index in the stream of each image.
        topic: crop and size.
        size: (height, width) that overrides the topic's.
    """

    def __init__(
        self, bag: Bag, stream: Stream, chosen: NDArray[np.int64], topic: CameraTopic, size: tuple[int, int] | None
    ) -> None:
        self._bag, self._stream, self._chosen = bag, stream, chosen
        self._crop, self._size = topic.crop, size or topic.size
        self._original: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self._chosen)

    def __iter__(self) -> Iterator[Picture]:
        """The images in order, uint8 (H, W, 3); one is in memory at a time.

        Raises:
            BagError: an image is damaged, of an unknown encoding or of another size than the first.
        """
        last, picture = -1, np.empty(0, np.uint8)
        for index in self._chosen:
            if index != last:
                last, picture = int(index), self._image(int(index))
            yield picture

    def size(self) -> tuple[int, int]:
        """(height, width) of the images, read from the first."""
        height, width = self._image(int(self._chosen[0])).shape[:2]
        return height, width

    def _image(self, index: int) -> Picture:
        kind, name = self._stream.type, self._stream.topic
        data = self._bag.read(self._stream.place[index])
        try:
            with reading(self._bag.path):
                message = message_types().deserialize_cdr(memoryview(data), kind)
                compressed = kind.endswith("CompressedImage")
                image = compressed_image_array(message) if compressed else image_array(message)
        except ObservationError as error:
            raise BagError(f"Image {index} on '{name}' in the bag '{self._bag.path}': {error}") from error
        if not self._original:
            self._original = image.shape
        elif image.shape != self._original:
            (h, w), (height, width) = self._original[:2], image.shape[:2]
            raise BagError(
                f"Images on '{name}' in the bag '{self._bag.path}' change size, from {w}x{h} to {width}x{height} at "
                f"image {index}; record with one size, or use --split-gap where the camera was started again."
            )
        if self._crop is not None:
            top, left, height, width = self._crop
            image = image[top : top + height, left : left + width]
            if image.shape[:2] != (height, width):
                raise BagError(f"Images on '{name}' are smaller than their crop {list(self._crop)} in the mapping.")
        if self._size is not None:
            image = resize(np.ascontiguousarray(image), *self._size)
        return np.ascontiguousarray(image)


@dataclass
class BagEpisode:
    """An episode whose numbers are read and aligned.

    Attributes:
        episode: without images.
        cameras: its images, still in the bag.
        report: of the alignment, fit for JSON.
    """

    episode: Episode
    cameras: dict[str, CameraImages]
    report: dict[str, Any]

    def load(self) -> Episode:
        """The episode with its images in memory."""
        return replace(self.episode, images={name: np.stack(list(c)) for name, c in self.cameras.items()})


def messages(bag: Bag, stream: Stream) -> list[Any]:
    """All messages of a stream whose data were read.

    Raises:
        BagError: damaged.
    """
    store = message_types()
    with reading(bag.path):
        return [store.deserialize_cdr(data, stream.type) for data in stream.data]


def header_stamps(bag: Bag, stream: Stream) -> Times | None:
    """Header stamps (N,) in ns in the order of recording; None for types without a header."""
    if stream.type.rpartition("/")[2] not in _HEADED:
        return None
    with reading(bag.path):
        return np.array([message_stamp(data) for data in stream.data], np.int64)


def segments(stamps: Times) -> list[NDArray[np.int64]]:
    """The messages (indices in the order of recording) between one backward jump of the clock and the next."""
    return np.split(np.arange(len(stamps)), backward_jumps(stamps))


def align_cameras(
    bag: Bag,
    tracks: dict[str, Track],
    topics: dict[str, CameraTopic],
    steps: Times,
    tolerance: float,
    options: AlignmentOptions,
    stride: int = 1,
) -> tuple[dict[str, CameraImages], dict[str, StreamReport]]:
    """The images of all cameras for the steps 0, s, 2s, ... and a report for each."""
    cameras, reports = {}, {}
    for name, track in tracks.items():
        wanted = steps[::stride]
        chosen, held = align_images(
            name, track.times, wanted, tolerance, allow_holes=options.allow_holes, start=int(steps[0])
        )
        cameras[name] = CameraImages(bag, track.stream, track.order[chosen], topics[name], options.size)
        reports[name] = report(track.times, wanted, chosen, held, track.offset)
    return cameras, reports


def summary(mapping: str, steps: Times, streams: dict[str, StreamReport], **facts: Any) -> dict[str, Any]:
    """The report of an episode."""
    seconds = float(steps[-1] - steps[0]) / 1e9
    return {
        "mapping": mapping,
        "steps": len(steps),
        "duration_s": round(seconds, 3),
        "skew_max_ms": max((s.skew_max_ms for s in streams.values()), default=0.0),
        "drops": sum(s.drops for s in streams.values()),
        "largest_gap_ms": max((s.largest_gap_ms for s in streams.values()), default=0.0),
        "held": sum(s.held for s in streams.values()),
        **facts,
        "streams": {name: stream.to_json() for name, stream in streams.items()},
    }


def check_finite(bag: Bag, name: str, values: NDArray[np.float64], steps: Times) -> None:
    """Refuses NaN and infinity, with where they are.

    Raises:
        BagError: there are some.
    """
    bad = ~np.isfinite(values).all(axis=1)
    if bad.any():
        step = int(np.flatnonzero(bad)[0])
        raise BagError(
            f"'{name}' in the bag '{bag.path}' holds NaN or infinity at step {step} "
            f"({(steps[step] - steps[0]) / 1e9:.2f} s into the episode, {int(bad.sum())} of {len(steps)} steps)."
        )
