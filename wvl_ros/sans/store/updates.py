"""The files in meta/ after an episode is added or labelled."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from wvl_ros.errors import DatasetError
from wvl_ros.sans.episode import Episode
from wvl_ros.sans.store import catalog, frames, statistics
from wvl_ros.sans.store import format as layout
from wvl_ros.sans.store.catalog import FORMAT, Catalog, EpisodeRecord
from wvl_ros.sans.store.checked_files import digest, dump, dump_signed, read_checked
from wvl_ros.sans.store.format import EPISODES_PER_FILE, IMAGES, INFO, SANS, STATS, TASKS, VERSION, DatasetFormat
from wvl_ros.sans.store.journal import Change, refusing
from wvl_ros.sans.store.statistics import Statistics

_OWN = {layout.LOCK.name, layout.JOURNAL.name, layout.DRAFTS.name}


def make_folder(root: Path) -> None:
    """Makes a folder for a new dataset.

    Raises:
        DatasetError: something else is there, or the disk refuses.
    """
    meta = root / SANS.parent
    with refusing(root):
        if root.exists() and not root.is_dir():
            raise DatasetError(f"'{root}' is a file; choose another folder for the dataset.")
        others = {entry.name for entry in root.glob("*")} - {meta.name} if root.exists() else set()
        others |= {entry.name for entry in meta.glob("*")} - _OWN - {SANS.name}
        if others and not layout.is_dataset(root):
            raise DatasetError(f"'{root}' is not empty and no SANS dataset; choose another folder.")
        meta.mkdir(parents=True, exist_ok=True)


def write_empty(root: Path, format: DatasetFormat) -> None:
    """The files of a dataset without episodes. The lock must be held."""
    with Change(root) as change:
        _finish(change, Catalog(format, {}, (), ()), {TASKS: _tasks_bytes([]), STATS: dump({})}, 0, 0, 0)
        change.commit()


def append(
    change: Change,
    state: Catalog,
    record: EpisodeRecord,
    episode: Episode,
    commands: NDArray[np.float64],
    extra: dict[str, object],
    videos: Mapping[str, str],
    pictures: Mapping[str, Statistics],
) -> None:
    """Stages the data of a new episode and the files in meta/ with it; the videos are staged already.

    Args:
        change: what is staged.
        state: the dataset as it is.
        record, episode: the new one.
        commands: its commanded poses (N, 7).
        extra: its extra facts.
        videos: path -> SHA-256 of its videos.
        pictures: camera -> statistics of its images.
    """
    root = change.root
    tasks = _read_tasks(read_checked(root, TASKS, state.files[str(TASKS)]), root / TASKS)
    if record.instruction not in tasks:
        tasks.append(record.instruction)
    columns = frames.columns(episode, commands, record.index, state.frames, tasks.index(record.instruction))
    data = frames.to_parquet(columns)
    name = layout.data_file(record.index)
    change.write(name, data)
    stats = {IMAGES + camera: entry for camera, entry in pictures.items()}
    stats |= {column: statistics.of_numbers(columns[column]) for column in layout.NUMBERS}
    facts = {
        "dataset_from_index": state.frames,
        "sha256": {str(name): digest(data), **videos},
        "extra": extra,
        "commanded_start": episode.commanded_start,
    }
    row = catalog.row(record, facts, state.format, stats)
    table = pa.Table.from_pylist([row], catalog.row_schema(state.format))
    number, place = divmod(record.index, EPISODES_PER_FILE)
    if place:
        table = pa.concat_tables([_episodes(root, state, number), table]).combine_chunks()
    old = _read_stats(root, state)
    try:
        total = {
            column: statistics.aggregate([old[column], entry] if column in old else [entry])
            for column, entry in stats.items()
        }
    except (ValueError, TypeError) as error:
        raise DatasetError(f"'{root / STATS}' does not fit the dataset; copy it again.") from error
    files = {
        TASKS: _tasks_bytes(tasks),
        layout.episodes_file(number): catalog.table_bytes(table),
        STATS: dump(statistics.to_json(total)),
    }
    _finish(change, state, files, record.index + 1, state.frames + record.length, len(tasks))


def relabel(
    change: Change, state: Catalog, record: EpisodeRecord, facts: Mapping[str, Any], reward: NDArray[np.float32]
) -> None:
    """Stages the files in meta/ for an episode with a new outcome; its data are staged already.

    Args:
        change: what is staged.
        state: the dataset as it is.
        record, facts: the episode's new record and row.
        reward: (N,), its column.
    """
    root = change.root
    number, place = divmod(record.index, EPISODES_PER_FILE)
    table = _episodes(root, state, number)
    new = {
        "outcome": record.outcome,
        "outcome_source": record.outcome_source,
        "data/sha256": facts["sha256"][str(layout.data_file(record.index))],
    }
    new |= {f"stats/reward/{name}": value.tolist() for name, value in statistics.of_numbers(reward).items()}
    for column, value in new.items():
        at = table.schema.get_field_index(column)
        values = table.column(column).to_pylist()
        values[place] = value
        table = table.set_column(at, table.schema.field(at), pa.array(values, table.schema.field(at).type))
    parts: list[Statistics] = []
    for other in range(-(-len(state.records) // EPISODES_PER_FILE)):
        rows = table if other == number else _episodes(root, state, other)
        lists = [rows.column(f"stats/reward/{name}").to_pylist() for name in statistics.NAMES]
        parts += [
            {name: np.asarray(value) for name, value in zip(statistics.NAMES, values, strict=True)}
            for values in zip(*lists, strict=True)
        ]
    stats = statistics.to_json(_read_stats(root, state) | {"reward": statistics.aggregate(parts)})
    tasks = read_checked(root, TASKS, state.files[str(TASKS)])
    files = {TASKS: tasks, layout.episodes_file(number): catalog.table_bytes(table), STATS: dump(stats)}
    total = len(_read_tasks(tasks, root / TASKS))
    _finish(change, state, files, len(state.records), state.frames, total)


def _finish(change: Change, state: Catalog, files: Mapping[Path, bytes], episodes: int, rows: int, tasks: int) -> None:
    """Stages these files, then info.json, then sans.json: in the order of who refers to whom."""
    format = state.format
    info = {
        "codebase_version": layout.LEROBOT_VERSION,
        "robot_type": "franka",
        "total_episodes": episodes,
        "total_frames": rows,
        "total_tasks": tasks,
        "chunks_size": layout.FILES_PER_CHUNK,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": format.lerobot_fps,
        "splits": {"train": f"0:{episodes}"},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
        if format.cameras
        else None,
        "features": format.features(),
    }
    sums = dict(state.files)
    for name, data in {**files, INFO: dump(info)}.items():
        sums[str(name)] = digest(data)
        if state.files.get(str(name)) != sums[str(name)]:
            change.write(name, data)
    body = {"format": FORMAT, "version": VERSION, "dataset": format.to_json(), "episodes": episodes, "files": sums}
    change.write(SANS, dump_signed(body))


def _episodes(root: Path, state: Catalog, number: int) -> pa.Table:
    name = layout.episodes_file(number)
    schema = catalog.row_schema(state.format)
    table = catalog.parse_rows(read_checked(root, name, state.files[str(name)]), root / name, schema.names)
    if not table.schema.equals(schema):
        raise DatasetError(f"'{root / name}' has columns of other types than wvl_ros writes; copy the dataset again.")
    return table


def _read_stats(root: Path, state: Catalog) -> dict[str, Statistics]:
    data = read_checked(root, STATS, state.files[str(STATS)])
    try:
        return statistics.from_json(json.loads(data))
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise DatasetError(f"'{root / STATS}' is not a table of statistics; copy the dataset again.") from error


def _tasks_bytes(tasks: list[str]) -> bytes:
    """meta/tasks.parquet as pandas writes it: the index holds the texts."""
    table = pa.table({"task_index": pa.array(range(len(tasks)), pa.int64()), "task": pa.array(tasks, pa.string())})
    described = [("task_index", "int64", "int64"), ("task", "unicode", "object")]
    pandas = {
        "index_columns": ["task"],
        "column_indexes": [],
        "columns": [
            {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": numpy, "metadata": None}
            for name, kind, numpy in described
        ],
    }
    return catalog.table_bytes(table.replace_schema_metadata({"pandas": json.dumps(pandas)}))


def _read_tasks(data: bytes, path: Path) -> list[str]:
    try:
        return [str(task) for task in pq.read_table(io.BytesIO(data)).column("task").to_pylist()]
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise DatasetError(f"'{path}' is not a table of tasks: {error}.") from error
