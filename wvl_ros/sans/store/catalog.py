"""What a dataset knows of its episodes: the rows of meta/episodes, checked, in memory."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from wvl_ros.errors import DatasetError
from wvl_ros.sans.store import format as layout
from wvl_ros.sans.store import statistics
from wvl_ros.sans.store.checked_files import load_signed, read_checked, unreadable
from wvl_ros.sans.store.format import EPISODES_PER_FILE, IMAGES, SANS, VERSION, DatasetFormat

FORMAT = "wvl_ros SANS dataset"
TEXTS = (
    *("episode_id", "task", "instruction", "outcome", "outcome_source", "source", "policy", "world_model"),
    *("origin", "fingerprint", "report", "extra"),
)  # report and extra hold JSON
NUMBERS = ("episode_index", "length", "dataset_from_index", "iteration", "image_stride")


@dataclass(frozen=True)
class EpisodeRecord:
    """What is known of an episode without opening its files.

    Attributes:
        index: in the dataset.
        length: number of observations.
        image_stride: steps between two images.
        origin: what it was converted from, a name for people.
        fingerprint: key for idempotent conversion, '' for none.
        report: what the conversion said (skew, drops, gaps).
        The others are as in `Episode`.
    """

    index: int
    episode_id: str
    length: int
    task: str
    instruction: str
    outcome: str
    outcome_source: str
    source: str
    policy: str
    world_model: str
    iteration: int
    image_stride: int
    origin: str
    fingerprint: str
    report: dict[str, object]


@dataclass(frozen=True)
class Catalog:
    """One state of a dataset.

    Attributes:
        format: of all episodes.
        files: path -> SHA-256 of the files in meta/.
        records: of the episodes, in order.
        rows: further columns of the episodes' rows, in order: commanded_start, extra, dataset_from_index, sha256
            (path -> checksum of the episode's data and videos).
    """

    format: DatasetFormat
    files: Mapping[str, str]
    records: tuple[EpisodeRecord, ...]
    rows: tuple[Mapping[str, Any], ...]

    @property
    def frames(self) -> int:
        """The number of rows in all data files."""
        last = len(self.records) - 1
        return int(self.rows[last]["dataset_from_index"]) + self.records[last].length if self.records else 0


def load(root: Path, known: Catalog | None = None) -> Catalog:
    """Reads a dataset's present state.

    Args:
        root: the dataset's folder.
        known: an earlier state, whose unchanged files are not read again.

    Raises:
        DatasetError: none is there, or a file is missing, damaged or of another version.
    """
    body = read_body(root)
    format, files, count = DatasetFormat.from_json(body.get("dataset")), body["files"], body["episodes"]
    records: list[EpisodeRecord] = []
    rows: list[Mapping[str, Any]] = []
    for number in range(-(-count // EPISODES_PER_FILE)):
        name = str(layout.episodes_file(number))
        first = number * EPISODES_PER_FILE
        if known and known.files.get(name) == files.get(name) and known.format == format:
            records += known.records[first : first + EPISODES_PER_FILE]
            rows += known.rows[first : first + EPISODES_PER_FILE]
            continue
        table = parse_rows(read_checked(root, name, str(files.get(name))), root / name)
        for record, row in entries(table, format, root / name):
            records.append(record)
            rows.append(row)
    if len(records) != count or any(record.index != i for i, record in enumerate(records)):
        raise DatasetError(f"'{root}' should have {count} episodes, but has rows of {len(records)}; run wvl verify.")
    return Catalog(format, files, tuple(records), tuple(rows))


def read_body(root: Path) -> dict[str, Any]:
    """The content of meta/sans.json.

    Raises:
        DatasetError: there is none, or it is damaged or of another version.
    """
    path = root / SANS
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise DatasetError(_no_dataset(root)) from None
    except OSError as error:
        raise unreadable(path, error) from error
    body = load_signed(data, path)
    if body.get("format") != FORMAT or body.get("version") != VERSION:
        raise DatasetError(
            f"'{root}' is a dataset of version {body.get('version')}; this wvl_ros reads version {VERSION}. Convert it "
            "with the wvl_ros that wrote it."
        )
    files, count = body.get("files"), body.get("episodes")
    names = {str(name) for name in (layout.INFO, layout.STATS, layout.TASKS)}
    if not isinstance(files, dict) or not names <= files.keys() or not isinstance(count, int) or count < 0:
        raise DatasetError(f"'{path}' is damaged; copy the dataset again.")
    return body


def parse_rows(data: bytes, path: Path, columns: list[str] | None = None) -> pa.Table:
    """The rows of one file of meta/episodes, without statistics unless `columns` names them.

    Raises:
        DatasetError: it is not such a file.
    """
    try:
        file = pq.ParquetFile(io.BytesIO(data))
        if columns is None:
            columns = [name for name in file.schema_arrow.names if not name.startswith("stats/")]
        return file.read(columns=columns, use_threads=False)
    except (pa.ArrowException, OSError, ValueError, KeyError, MemoryError) as error:
        raise DatasetError(f"'{path}' is not a table of episodes: {error}.") from error


def entries(table: pa.Table, format: DatasetFormat, path: Path) -> list[tuple[EpisodeRecord, dict[str, Any]]]:
    try:
        entries = []
        for row in table.to_pylist():
            texts = {name: str(row[name]) for name in TEXTS}
            numbers = {name: int(row[name]) for name in NUMBERS}
            report, extra = json.loads(texts.pop("report")), json.loads(texts.pop("extra"))
            start = np.array(row["commanded_start"], float)
            index, length, stride = (numbers[name] for name in ("episode_index", "length", "image_stride"))
            if length < 1 or stride < 1 or index < 0 or start.shape != (7,):
                raise ValueError("numbers out of range")
            if not isinstance(report, dict) or not isinstance(extra, dict):
                raise ValueError("report and extra should be tables")
            record = EpisodeRecord(
                index, length=length, iteration=numbers["iteration"], image_stride=stride, report=report, **texts
            )
            sha256 = {str(layout.data_file(index)): str(row["data/sha256"])}
            for camera in format.cameras:
                sha256[str(layout.video_file(index, camera))] = str(row[f"videos/{IMAGES}{camera}/sha256"])
            first = numbers["dataset_from_index"]
            entries.append(
                (record, {"commanded_start": start, "extra": extra, "dataset_from_index": first, "sha256": sha256})
            )
        return entries
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise DatasetError(f"'{path}' is damaged: {error!r}.") from error


def row(
    record: EpisodeRecord,
    facts: Mapping[str, Any],
    format: DatasetFormat,
    stats: Mapping[str, statistics.Statistics],
) -> dict[str, Any]:
    """The row of meta/episodes for an episode; LeRobot's columns, ours, and the statistics."""
    number = record.index // EPISODES_PER_FILE
    first, index = facts["dataset_from_index"], record.index
    chunk, file = layout.chunk_and_file(index)
    values: dict[str, Any] = {
        "episode_index": index,
        "tasks": [record.instruction],
        "length": record.length,
        "dataset_from_index": first,
        "dataset_to_index": first + record.length,
        "data/chunk_index": chunk,
        "data/file_index": file,
        "data/sha256": facts["sha256"][str(layout.data_file(index))],
    }
    for camera in format.cameras:
        key = f"videos/{IMAGES}{camera}"
        values[f"{key}/chunk_index"], values[f"{key}/file_index"] = chunk, file
        values[f"{key}/from_timestamp"], values[f"{key}/to_timestamp"] = 0.0, record.length / format.fps
        values[f"{key}/sha256"] = facts["sha256"][str(layout.video_file(index, camera))]
    chunk, file = layout.chunk_and_file(number)
    values |= {"meta/episodes/chunk_index": chunk, "meta/episodes/file_index": file}
    values |= {name: getattr(record, name) for name in TEXTS if name not in ("report", "extra")}
    values |= {"iteration": record.iteration, "image_stride": record.image_stride}
    values |= {"report": json.dumps(record.report), "extra": json.dumps(facts["extra"])}
    values["commanded_start"] = list(facts["commanded_start"])
    for column, entry in stats.items():
        values |= {f"stats/{column}/{name}": entry[name].tolist() for name in statistics.NAMES}
    return values


def row_schema(format: DatasetFormat) -> pa.Schema:
    """Types of the columns of meta/episodes."""
    kinds: dict[str, pa.DataType] = {name: pa.int64() for name in ("episode_index", "length")}
    kinds["tasks"] = pa.list_(pa.string())
    kinds |= {name: pa.int64() for name in ("dataset_from_index", "dataset_to_index")}
    kinds |= {"data/chunk_index": pa.int64(), "data/file_index": pa.int64(), "data/sha256": pa.string()}
    for camera in format.cameras:
        key = f"videos/{IMAGES}{camera}"
        kinds |= {f"{key}/chunk_index": pa.int64(), f"{key}/file_index": pa.int64(), f"{key}/sha256": pa.string()}
        kinds |= {f"{key}/from_timestamp": pa.float64(), f"{key}/to_timestamp": pa.float64()}
    kinds |= {"meta/episodes/chunk_index": pa.int64(), "meta/episodes/file_index": pa.int64()}
    kinds |= {name: pa.string() for name in TEXTS}
    kinds |= {"iteration": pa.int64(), "image_stride": pa.int64(), "commanded_start": pa.list_(pa.float64())}
    values = pa.list_(pa.float64())
    for camera in format.cameras:
        kinds |= {f"stats/{IMAGES}{camera}/{name}": pa.list_(pa.list_(values)) for name in statistics.NAMES}
        kinds[f"stats/{IMAGES}{camera}/count"] = pa.list_(pa.int64())
    for column in layout.NUMBERS:
        kinds |= {f"stats/{column}/{name}": values for name in statistics.NAMES}
        kinds[f"stats/{column}/count"] = pa.list_(pa.int64())
    return pa.schema(kinds.items())


def table_bytes(table: pa.Table) -> bytes:
    """A parquet file with this table."""
    sink = io.BytesIO()
    pq.write_table(table, sink, write_statistics=False)
    return sink.getvalue()


def _no_dataset(root: Path) -> str:
    if (root / layout.INFO).is_file():
        return f"'{root}' is a LeRobot dataset without {SANS}, so not one of wvl_ros; add it to one with wvl convert."
    return f"There is no SANS dataset at '{root}'; make one with wvl convert."
