"""One camera's video of an episode: H.264 in an MP4, written and read frame by frame.

The settings are measured (`benchmarks/codec.py`). 4:4:4, because with halved colour no rate reaches 38 dB on rendered
edges; no B-frames and a key frame at least every 12, because trainers read at random; one thread an encoder, because
cameras and episodes run beside each other.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from numpy.typing import NDArray

from wvl_ros.errors import DatasetError

Picture = NDArray[np.uint8]

# ultrafast alone gives 37 dB on some of DROID's wrist pictures at a ninth of the raw size; with a short look-ahead for
# the macroblock tree and CABAC it is no slower, 39 dB, and half the size or less.
_LOSSY = {
    "crf": "18",
    "preset": "ultrafast",
    "tune": "psnr",
    "g": "12",
    "bf": "0",
    "x264-params": "mbtree=1:rc-lookahead=5:cabac=1",
}
_LOSSLESS = {"qp": "0", "preset": "ultrafast", "g": "12", "bf": "0"}
_SD = 6  # colorspace, primaries and transfer function of SMPTE 170M, which all decoders take for RGB


class VideoWriter:
    """Encodes pictures to a new MP4. Frame i has the time i / fps exactly.

    The file is whole after `close`; leaving the context on an error closes it without checks. Encoding releases the
    GIL; one writer is for one thread at a time.
    """

    def __init__(self, path: Path, size: tuple[int, int], fps: float, codec: str) -> None:
        """Opens the file.

        Args:
            path: of the file, in a folder that exists.
            size: (height, width) in px.
            fps: frames a second.
            codec: 'h264' or 'lossless'.

        Raises:
            DatasetError: the file cannot be written.
        """
        self.path, self.size, self.frames = path, size, 0
        self._rgb = codec == "lossless"
        self._last: av.VideoFrame | None = None
        rate = Fraction(fps).limit_denominator(1001)
        try:
            self._file = path.open("w+b")  # ours, because PyAV does not close its own when the disk is full
        except OSError as error:
            raise _not_written(path, error) from error
        self._container = av.open(self._file, "w", format="mp4")
        stream = self._container.add_stream("libx264rgb" if self._rgb else "libx264", rate=rate)
        stream.height, stream.width = size
        stream.pix_fmt = "rgb24" if self._rgb else "yuv444p"
        stream.time_base = 1 / rate
        stream.options = _LOSSLESS if self._rgb else _LOSSY
        context = stream.codec_context
        context.thread_count = 1
        if not self._rgb:
            context.color_range = int(ColorRange.MPEG)
            context.colorspace = context.color_primaries = context.color_trc = _SD
        self._stream, self._tick = stream, 1 / rate
        self._reformatter = VideoReformatter()  # one, as its tables take longer to make than to use

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close() if kind is None else self.abort()

    def write(self, picture: Picture) -> None:
        """Adds one frame.

        Raises:
            DatasetError: not a uint8 (H, W, 3) picture of the video's size, or the disk is full.
        """
        if picture.dtype != np.uint8 or picture.shape != (*self.size, 3):
            raise DatasetError(
                f"'{self.path.stem}' takes uint8 pictures of the shape {(*self.size, 3)}, but got {picture.dtype} "
                f"{picture.shape}; convert with --size, or make a dataset of that size."
            )
        if self._rgb:  # the encoder may keep the frame, and the caller may reuse the picture
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        else:
            frame = self._reformatter.reformat(
                av.VideoFrame.from_numpy_buffer(np.ascontiguousarray(picture), format="rgb24"),
                format="yuv444p",
                dst_colorspace=Colorspace.ITU601,
                dst_color_range=ColorRange.MPEG,
                interpolation="POINT",  # nothing is scaled
                threads=1,
            )
        self._last = frame
        self._encode(frame)

    def hold(self, frames: int) -> None:
        """Repeats the last frame."""
        assert self._last is not None or frames == 0
        for _ in range(frames):
            self._encode(self._last)

    def close(self) -> None:
        """Ends the file, writes it through, and checks that all frames are in it: a full disk may show only here.

        Raises:
            DatasetError: the file is not whole.
        """
        try:
            if self.frames:
                self._container.mux(self._stream.encode())
            self._container.close()
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            written = count_frames(self.path)
        except (OSError, av.error.FFmpegError) as error:
            raise _not_written(self.path, error) from error
        if written != self.frames:
            raise DatasetError(f"'{self.path.name}' holds {written} of {self.frames} frames; is the disk full?")

    def abort(self) -> None:
        """Closes the file as it is, whole or not."""
        with suppress(OSError, av.error.FFmpegError):  # the caller drops the file and knows why
            self._container.close()
        with suppress(OSError):
            self._file.close()

    def _encode(self, frame: av.VideoFrame | None) -> None:
        assert frame is not None
        frame.pts, frame.time_base = self.frames, self._tick
        frame.pict_type = 0  # the encoder chooses, also for a frame that it has seen
        self.frames += 1
        try:
            self._container.mux(self._stream.encode(frame))
        except (OSError, av.error.FFmpegError) as error:
            raise _not_written(self.path, error) from error


def count_frames(path: Path) -> int:
    """The number of frames in a video, without decoding it."""
    with av.open(str(path)) as container:
        return sum(packet.size > 0 for packet in container.demux(video=0))


def read_frames(path: Path, size: tuple[int, int], frames: int, every: int = 1) -> Iterator[Picture]:
    """Decodes a video, streaming.

    Args:
        path: of the MP4.
        size: the (height, width) that it should have.
        frames: the number of frames that it should have.
        every: yields frames 0, every, 2 every, ...

    Yields:
        uint8 (H, W, 3) RGB, each an array of its own.

    Raises:
        DatasetError: not a video, or not of this size and length.
    """
    count = 0
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise ValueError("unknown codec")
            stream.codec_context.thread_count = 1
            _check_size(path, (stream.height, stream.width), size)
            for frame in container.decode(stream):
                _check_size(path, (frame.height, frame.width), size)
                if count < frames and count % every == 0:
                    yield frame.reformat(format="rgb24", threads=1).to_ndarray()
                count += 1
                if count > frames:
                    break
    except (OSError, av.error.FFmpegError, IndexError, ValueError) as error:
        raise DatasetError(f"'{path}' cannot be read as a video ({error}); run wvl verify.") from error
    if count != frames:
        raise DatasetError(
            f"'{path}' has {'more than ' if count > frames else ''}{min(count, frames)} frames where its episode has "
            f"{frames}; run wvl verify."
        )


def _check_size(path: Path, got: tuple[int, int], size: tuple[int, int]) -> None:
    if got != tuple(size):
        raise DatasetError(f"'{path}' has pictures of {got} px where the dataset has {tuple(size)}; run wvl verify.")


def _not_written(path: Path, error: Exception) -> DatasetError:
    return DatasetError(f"The video '{path.name}' could not be written ({error}); free some space and try again.")
