"""SANS in the layout from which openpi fine-tunes pi0.5 on DROID: a LeRobotDataset v2.1 with its pictures in parquet.

openpi (its `LeRobotDROIDDataConfig`) reads v2.1 through the lerobot of its lock file (0cf8648, May 2025); names, types
and sizes are those of its examples/droid/convert_droid_data_to_lerobot.py. One row an observation, as in SANS.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from wvl_ros.errors import DatasetError, EpisodeError
from wvl_ros.sans.dataset import Dataset, EpisodeRecord
from wvl_ros.sans.episode import Episode
from wvl_ros.sans.store import statistics
from wvl_ros.sans.store.checked_files import dump, sync, write_synced
from wvl_ros.worlds import kinematics
from wvl_ros.worlds.droid import CAMERAS, CONTROL_HZ, MAX_JOINT_DELTA, euler_to_matrix

Array = NDArray[np.float64]

VERSION = "v2.1"
HEIGHT, WIDTH = 180, 320  # px, DROID's
NUMBERS = {"joint_position": ("float32", 7), "gripper_position": ("float32", 1), "actions": ("float32", 8)}
INDICES = {"timestamp": "float32", **dict.fromkeys(("frame_index", "episode_index", "index", "task_index"), "int64")}
WINDOW = 8  # rows over which the arm's response is measured: as many as openpi executes of a chunk

_EPISODES_PER_CHUNK = 1000
_STATISTICS = ("min", "max", "mean", "std", "count")
_TYPES = {"float32": pa.float32(), "int64": pa.int64()}


@dataclass(frozen=True)
class OpenPiExport:
    """What was written.

    Attributes:
        root: the folder. episodes, frames, tasks: how many are in it.
        left_out: why -> how many episodes of the dataset are not in it.
        limited: rows whose command lay further away than a velocity of 1 leads.
        response: share of 0.2 v rad that the arm covered in a control step, by least squares over `WINDOW` rows: what a
            `policies.openpi` policy that is trained on it wants to know; at most 1. None when nothing moves.
    """

    root: Path
    episodes: int
    frames: int
    tasks: int
    left_out: dict[str, int]
    limited: int
    response: float | None


def export_openpi(
    dataset: Dataset, out: Path, *, everything: bool = False, progress: Callable[[int], object] = lambda n: None
) -> OpenPiExport:
    """Writes the folder `out`, whole or not at all; an export that broke off is begun anew.

    Args:
        dataset: with DROID's cameras, at its rate.
        out: a new folder.
        everything: all episodes that show a motion and have an instruction; by default only successes.
        progress: is told after each episode how many there will be.

    Raises:
        EpisodeError: it lacks one of DROID's cameras, or runs at another rate.
        DatasetError: no episode is left, one is damaged, or the folder cannot be written.
    """
    out = out.expanduser()
    if missing := [camera for camera in CAMERAS if camera not in dataset.format.cameras]:
        has = ", ".join(dataset.format.cameras) or "none"
        raise EpisodeError(f"openpi wants DROID's camera '{missing[0]}', which '{dataset.root}' lacks; it has: {has}.")
    if dataset.format.fps != CONTROL_HZ:
        raise EpisodeError(f"openpi wants {CONTROL_HZ} steps a second; '{dataset.root}' has {dataset.format.fps:g}.")
    records, left_out = _choose(dataset.records, everything)
    if not records:
        reasons = ", ".join(f"{count} {why}" for why, count in left_out.items()) or "none at all"
        raise DatasetError(
            f"'{dataset.root}' has no episode to export ({reasons}); label successes with wvl label, or add --all."
        )
    with _whole_folder(out) as folder:
        writer = _Writer(dataset, folder)
        for record in records:
            writer.add(record)
            progress(len(records))
        writer.finish()
    return OpenPiExport(out, len(records), writer.frames, len(writer.tasks), left_out, writer.limited, writer.response)


def joint_velocities(joints: Array, poses: Array) -> tuple[Array, int]:
    """DROID's normalised `joint_velocity` that leads from each observation to what was commanded there.

    As in DROID's `create_action_dict`, v = (target - measured joints) / 0.2 rad, because that is how DROID executes it:
    it sets the target to the measured joints + 0.2 v. Whoever does so gives the recorded commands again, however far
    the arm lags behind. SANS keeps commands as poses; the target is the joint vector of the pose that is nearest to
    where the arm went, so that its elbow moves as it did.

    Args:
        joints: (N, 7) rad, measured.
        poses: (N - 1, 6) commanded, of which t leads from observation t to t + 1.

    Returns:
        (N, 7): the last row holds the last command. A command that is further away than the largest velocity leads is
        approached straight, with 1 for the joint that is furthest off; and the number of such rows.
    """
    targets = np.empty_like(joints)
    for t in range(len(joints)):
        pose, near = poses[min(t, len(poses) - 1)], joints[min(t + 1, len(joints) - 1)]
        targets[t] = kinematics.inverse_kinematics(pose[:3], euler_to_matrix(pose[3:]), near, near, tolerance=1e-6)
    velocities = (targets - joints) / MAX_JOINT_DELTA
    excess = np.abs(velocities).max(axis=1, keepdims=True)
    return velocities / np.maximum(excess, 1.0), int((excess > 1.0).sum())


def picture_size(height: int, width: int) -> tuple[int, int]:
    """Height and width in px: made to fit into DROID's 180x320, never enlarged and never out of proportion.

    A picture of another shape stays of that shape: the policy sees it padded, in training as when it acts.
    """
    scale = min(1.0, HEIGHT / height, WIDTH / width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def _choose(records: Sequence[EpisodeRecord], everything: bool) -> tuple[list[EpisodeRecord], dict[str, int]]:
    chosen, left_out = [], Counter[str]()
    for record in records:
        if record.outcome != "success" and not everything:
            left_out["not labelled a success"] += 1
        elif not record.instruction.strip():
            left_out["without an instruction"] += 1
        elif record.length < 2:
            left_out["without an action"] += 1
        else:
            chosen.append(record)
    return chosen, dict(left_out)


class _Writer:
    """Writes one episode after the other into a folder, and at last what meta/ says of them."""

    def __init__(self, dataset: Dataset, folder: Path) -> None:
        self._dataset, self._folder = dataset, folder
        self._sizes = {camera: picture_size(*dataset.format.cameras[camera]) for camera in CAMERAS}
        self._episodes: list[dict[str, Any]] = []
        self._statistics: list[dict[str, Any]] = []
        self._travelled = self._meant = 0.0
        self.tasks: dict[str, int] = {}
        self.frames = self.limited = 0

    @property
    def response(self) -> float | None:
        """See `OpenPiExport`."""
        share = self._travelled / self._meant if self._meant > 0 else 0.0
        return min(1.0, share) if share > 0 else None

    def add(self, record: EpisodeRecord) -> None:
        """Writes an episode's data file."""
        index, episode = len(self._episodes), self._dataset.read(record.index, images=False)
        velocities, limited = joint_velocities(episode.joint_position, episode.action[:, :6])
        task = self.tasks.setdefault(record.instruction, len(self.tasks))
        columns = _columns(episode, velocities, index, self.frames, task)
        with ThreadPoolExecutor(len(CAMERAS)) as pool:
            jobs = {camera: pool.submit(self._encode, record.index, camera) for camera in CAMERAS}
        pictures = {camera: job.result() for camera, job in jobs.items()}
        path = self._folder / _data_file(index)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_synced(path, _parquet(columns, {c: files for c, (files, _) in pictures.items()}, record.image_stride))
        entries = {camera: entry for camera, (_, entry) in pictures.items()}
        entries |= {name: statistics.of_numbers(values) for name, values in columns.items()}
        plain = {name: {key: entry[key].tolist() for key in _STATISTICS} for name, entry in entries.items()}
        facts = {"episode_id": record.episode_id, "outcome": record.outcome}
        self._episodes.append({"episode_index": index, "tasks": [record.instruction], "length": len(episode), **facts})
        self._statistics.append({"episode_index": index, "stats": plain})
        went, meant = _travels(episode.joint_position, velocities)
        self._travelled += float((went * meant).sum())
        self._meant += float((meant * meant).sum())
        self.frames += len(episode)
        self.limited += limited

    def finish(self) -> None:
        """Writes meta/."""
        meta = self._folder / "meta"
        meta.mkdir()
        write_synced(meta / "info.json", dump(_info(len(self._episodes), self.frames, len(self.tasks), self._sizes)))
        tasks = [{"task_index": index, "task": task} for task, index in self.tasks.items()]
        for name, rows in (("tasks", tasks), ("episodes", self._episodes), ("episodes_stats", self._statistics)):
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            write_synced(meta / f"{name}.jsonl", text.encode())

    def _encode(self, index: int, camera: str) -> tuple[list[bytes], statistics.Statistics]:
        """An episode's pictures of one camera as PNG files, and their statistics."""
        height, width = self._sizes[camera]
        counts, files = statistics.PictureStatistics(), []
        for picture in self._dataset.images(index, camera):
            image = Image.fromarray(picture)
            if picture.shape[:2] != (height, width):
                image = image.resize((width, height), Image.Resampling.BICUBIC)
            counts.add(np.asarray(image))
            file = io.BytesIO()
            image.save(file, "PNG", compress_level=1)
            files.append(file.getvalue())
        return files, counts.result()


def _travels(joints: Array, velocities: Array) -> tuple[Array, Array]:
    """How far (K, 7) the arm went in each window, and how far its velocities lead if each is covered in a step; rad."""
    path = np.vstack([np.zeros(7), np.cumsum(MAX_JOINT_DELTA * velocities, axis=0)])[:-1]
    return joints[WINDOW:] - joints[:-WINDOW], path[WINDOW:] - path[:-WINDOW]


def _columns(episode: Episode, velocities: Array, index: int, first: int, task: int) -> dict[str, NDArray[Any]]:
    """The columns of an episode without its pictures, each of its type."""
    n = len(episode)
    grippers = np.vstack([episode.action[:, 6:], episode.action[-1:, 6:]])
    numbers = {
        "joint_position": episode.joint_position,
        "gripper_position": episode.gripper_position,
        "actions": np.hstack([velocities, grippers]),
        "timestamp": np.arange(n) / CONTROL_HZ,
        "frame_index": np.arange(n),
        "episode_index": np.full(n, index),
        "index": first + np.arange(n),
        "task_index": np.full(n, task),
    }
    types = {name: kind for name, (kind, _) in NUMBERS.items()} | INDICES
    return {name: np.asarray(values, types[name]) for name, values in numbers.items()}


def _parquet(columns: Mapping[str, NDArray[Any]], pictures: Mapping[str, list[bytes]], stride: int) -> bytes:
    """The data file: columns as `datasets` writes them, and told in its words. The latest picture is given again."""
    n = len(columns["index"])
    names = pa.array([f"frame_{t:06d}.png" for t in range(n)])
    arrays: dict[str, pa.Array] = {}
    features: dict[str, Any] = {}
    for camera, files in pictures.items():
        data = pa.array([files[t // stride] for t in range(n)], pa.binary())
        arrays[camera] = pa.StructArray.from_arrays([data, names], ["bytes", "path"])
        features[camera] = {"_type": "Image"}
    for name, (kind, width) in (NUMBERS | {name: (kind, 1) for name, kind in INDICES.items()}).items():
        flat = pa.array(np.ascontiguousarray(columns[name]).reshape(-1), _TYPES[kind])
        arrays[name] = flat if width == 1 else pa.FixedSizeListArray.from_arrays(flat, width)
        value = {"dtype": kind, "_type": "Value"}
        features[name] = value if width == 1 else {"feature": value, "length": width, "_type": "Sequence"}
    table = pa.table(arrays).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def _data_file(index: int) -> str:
    return f"data/chunk-{index // _EPISODES_PER_CHUNK:03d}/episode_{index:06d}.parquet"


def _info(episodes: int, frames: int, tasks: int, sizes: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
    features: dict[str, Any] = {
        camera: {"dtype": "image", "shape": [*size, 3], "names": ["height", "width", "channel"]}
        for camera, size in sizes.items()
    }
    features |= {name: {"dtype": kind, "shape": [width], "names": [name]} for name, (kind, width) in NUMBERS.items()}
    features |= {name: {"dtype": kind, "shape": [1], "names": None} for name, kind in INDICES.items()}
    return {
        "codebase_version": VERSION,
        "robot_type": "panda",
        "total_episodes": episodes,
        "total_frames": frames,
        "total_tasks": tasks,
        "total_videos": 0,
        "total_chunks": (episodes - 1) // _EPISODES_PER_CHUNK + 1,
        "chunks_size": _EPISODES_PER_CHUNK,
        "fps": CONTROL_HZ,
        "splits": {"train": f"0:{episodes}"},
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": None,
        "features": features,
    }


@contextmanager
def _whole_folder(target: Path) -> Iterator[Path]:
    """A hidden folder beside `target` that takes its name when all is written, and is removed on an error.

    It is locked while its writer lives; what a dead one has left is removed.

    Raises:
        DatasetError: something is at `target`, another export writes it, or the disk refuses.
    """
    part = target.with_name(f".{target.name}.part")
    try:
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise DatasetError(f"'{target}' is there already; choose another folder for the export, or remove it.")
        part.mkdir(parents=True, exist_ok=True)
        lock = os.open(part, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise DatasetError(
                f"Another export is writing '{target}'; wait for it, or choose another folder."
            ) from None
        try:
            for left in part.iterdir():
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            yield part
            sync(part)
            part.rename(target)
            sync(target.parent)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
        finally:
            os.close(lock)
    except OSError as error:
        raise DatasetError(f"The export cannot be written to '{target}': {error.strerror or error}.") from error
