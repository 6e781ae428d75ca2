"""The files of a LeRobotDataset (v2.0, v2.1 and v3.0), read with pyarrow and PyAV alone.

Version 2 has a parquet file and one MP4 a camera for each episode; version 3 packs many episodes into each file.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from wvl_ros.errors import EpisodeError

INFO = Path("meta") / "info.json"
_VERSIONS = ("v2.0", "v2.1", "v3.0")
_Place = Mapping[str, Any]  # what meta/episodes says of an episode


def is_lerobot(path: Path | str) -> bool:
    """Whether a folder is a LeRobotDataset of any version: it has a meta/info.json with a `codebase_version`."""
    try:
        return "codebase_version" in json.loads((Path(path) / INFO).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


@dataclass(frozen=True)
class LerobotFiles:
    """One dataset on disk.

    Attributes:
        features: name -> {'dtype', 'shape', 'names'}, as in meta/info.json.
        episodes: what meta/ says of each episode, by index; at least `length` and `tasks`.
    """

    root: Path
    version: str
    fps: float
    features: Mapping[str, Mapping[str, Any]]
    data_path: str
    video_path: str
    chunk_size: int
    episodes: Mapping[int, _Place] = field(repr=False)

    @classmethod
    def open(cls, root: Path | str) -> LerobotFiles:
        """Reads meta/.

        Raises:
            EpisodeError: it is damaged or of a version not known here.
        """
        root = Path(root)
        try:
            info = json.loads((root / INFO).read_text(encoding="utf-8"))
            version = str(info["codebase_version"])
            if version not in _VERSIONS:
                known = ", ".join(_VERSIONS)
                raise EpisodeError(f"The LeRobot dataset '{root}' is of version {version}; convert it to {known}.")
            episodes = _packed_episodes(root) if version == "v3.0" else _single_episodes(root)
            if short := [index for index, place in episodes.items() if int(place["length"]) < 1]:
                raise EpisodeError(f"Episode {short[0]} of the LeRobot dataset '{root}' has no rows; copy it again.")
            return cls(
                root=root,
                version=version,
                fps=float(info["fps"]),
                features=info["features"],
                data_path=str(info["data_path"]),
                video_path=str(info.get("video_path") or ""),
                chunk_size=int(info.get("chunks_size", 1000)),
                episodes=episodes,
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException) as error:
            raise EpisodeError(f"The meta/ folder of the LeRobot dataset '{root}' cannot be read: {error}.") from error

    def table(self, index: int, columns: Sequence[str]) -> pa.Table:
        """The rows of an episode in order, with some columns of its parquet file.

        Raises:
            EpisodeError: the file is missing or damaged, or lacks rows.
        """
        path = self.root / self._format(self.data_path, index, "data")
        try:
            table = pq.read_table(path, columns=list(columns), filters=[("episode_index", "==", index)])
        except (OSError, ValueError, pa.ArrowException) as error:
            raise EpisodeError(f"'{path}' cannot be read: {error}.") from error
        if table.num_rows != (length := int(self.episodes[index]["length"])):
            raise EpisodeError(
                f"'{path}' holds {table.num_rows} rows of episode {index}, where meta/ says {length}; copy it again."
            )
        return table

    def images(self, index: int, key: str) -> NDArray[np.uint8]:
        """All images of an episode, uint8 (N, H, W, 3): one a row, from its video or from the table.

        Raises:
            EpisodeError: a file is missing or damaged, or has too few images.
        """
        if self.features[key].get("dtype") == "image":
            return np.stack([_decode(cell, key) for cell in self.table(index, [key, "episode_index"])[key].to_pylist()])
        place = self.episodes[index]
        count = int(place["length"])
        start = float(place.get(f"videos/{key}/from_timestamp", 0.0))
        path = self.root / self._format(self.video_path, index, f"videos/{key}", video_key=key)
        return read_frames(path, start, count, self.fps)

    def _format(self, pattern: str, index: int, kind: str, **names: str) -> str:
        try:
            if self.version == "v3.0":
                place = self.episodes[index]
                chunk, file = (int(place[f"{kind}/{name}_index"]) for name in ("chunk", "file"))
                return pattern.format(chunk_index=chunk, file_index=file, **names)
            return pattern.format(episode_chunk=index // self.chunk_size, episode_index=index, **names)
        except (KeyError, IndexError, ValueError, TypeError) as error:
            raise EpisodeError(
                f"The meta/ folder of '{self.root}' does not say where episode {index} is: {error}."
            ) from error


def read_frames(path: Path, start: float, count: int, fps: float) -> NDArray[np.uint8]:
    """So many frames of a video from a time on, uint8 (count, H, W, 3) RGB.

    Raises:
        EpisodeError: no such file, not a video, or it ends too early.
    """
    first = start - 0.5 / fps
    frames: list[NDArray[np.uint8]] = []
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            if start > 0 and stream.time_base is not None:
                container.seek(int(max(0.0, first) / stream.time_base), stream=stream)  # to the key frame before
            for frame in container.decode(stream):
                if frame.time is not None and frame.time >= first:
                    frames.append(frame.to_ndarray(format="rgb24"))
                    if len(frames) == count:
                        break
    except (av.error.FFmpegError, IndexError, OSError) as error:
        raise EpisodeError(f"'{path}' cannot be read as a video: {error}.") from error
    if len(frames) < count:
        raise EpisodeError(f"'{path}' has {len(frames)} frames from {start:.3f} s on, where {count} are called for.")
    return np.stack(frames)


def _packed_episodes(root: Path) -> dict[int, _Place]:
    files = sorted((root / "meta" / "episodes").rglob("*.parquet"))
    if not files:
        raise EpisodeError(f"The LeRobot dataset '{root}' has no meta/episodes; copy the whole folder.")
    found: dict[int, _Place] = {}
    for path in files:
        names = [name for name in pq.read_schema(path).names if not name.startswith("stats/")]
        found |= {int(row["episode_index"]): row for row in pq.read_table(path, columns=names).to_pylist()}
    return dict(sorted(found.items()))


def _single_episodes(root: Path) -> dict[int, _Place]:
    rows = _lines(root / "meta" / "episodes.jsonl")
    return {int(row["episode_index"]): row for row in rows}


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.strip():
                yield json.loads(line)


def _decode(cell: Any, key: str) -> NDArray[np.uint8]:
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    if not isinstance(data, bytes):
        raise EpisodeError(f"The images of '{key}' are not stored in the parquet file itself; copy the whole dataset.")
    try:
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    except OSError as error:
        raise EpisodeError(f"An image of '{key}' cannot be read: {error}.") from error
