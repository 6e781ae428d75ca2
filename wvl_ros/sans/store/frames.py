"""The data file of an episode: one row an observation, columns as LeRobot and users of DROID expect them."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from wvl_ros.errors import DatasetError
from wvl_ros.sans.episode import Episode
from wvl_ros.sans.store.format import NUMBERS, TEXTS

_TYPES = {"float32": pa.float32(), "float64": pa.float64(), "int64": pa.int64(), "bool": pa.bool_()}
_ARRAYS = (
    "observation.state.joint_position",
    "observation.state.cartesian_position",
    "observation.state.gripper_position",
    "action.cartesian_position",
    "action.gripper_position",
)


def columns(episode: Episode, commands: NDArray[np.float64], index: int, first: int, task: int) -> dict[str, Any]:
    """The columns of an episode's rows.

    Args:
        episode: N observations.
        commands: (N, 7) commanded poses, row 0 before the first action.
        index: of the episode in the dataset.
        first: index of its first row in the dataset.
        task: index of its instruction in meta/tasks.parquet.

    Returns:
        name -> array (N,) or (N, D) of the column's type, or N texts. The action of row t leads to row t + 1; the
        last row repeats the last command. The reward of row t belongs to the observation of row t; the first is 0.
    """
    n = len(episode)
    actions = np.vstack([commands[1:], commands[-1:]])
    rows = np.arange(n)
    numbers = {
        "observation.state": np.hstack([episode.joint_position, episode.gripper_position]),
        "observation.state.joint_position": episode.joint_position,
        "observation.state.cartesian_position": episode.cartesian_position,
        "observation.state.gripper_position": episode.gripper_position,
        "action": actions,
        "action.cartesian_position": actions[:, :6],
        "action.gripper_position": actions[:, 6:],
        "reward": np.concatenate([[0.0], episode.reward]),
        "next.done": rows == n - 1,
        "iteration": np.full(n, episode.iteration),
        "timestamp": rows / episode.fps,
        "frame_index": rows,
        "episode_index": np.full(n, index),
        "index": first + rows,
        "task_index": np.full(n, task),
    }
    typed: dict[str, Any] = {name: np.asarray(values, NUMBERS[name][0]) for name, values in numbers.items()}
    return typed | {name: [getattr(episode, name)] * n for name in TEXTS}


def to_parquet(columns: dict[str, Any]) -> bytes:
    """The data file with these columns."""
    arrays, fields = [], []
    for name, (dtype, width, _) in NUMBERS.items():
        kind = _TYPES[dtype]
        flat = pa.array(np.ascontiguousarray(columns[name]).reshape(-1), kind)
        arrays.append(flat if width == 1 else pa.FixedSizeListArray.from_arrays(flat, width))
        fields.append(pa.field(name, kind if width == 1 else pa.list_(kind, width)))
    for name in TEXTS:
        arrays.append(pa.array(columns[name], pa.string()))
        fields.append(pa.field(name, pa.string()))
    sink = io.BytesIO()
    pq.write_table(pa.table(arrays, pa.schema(fields)), sink, write_statistics=False)
    return sink.getvalue()


def from_parquet(data: bytes, what: str) -> dict[str, Any]:
    """What `to_parquet` was given; numbers bit by bit.

    Args:
        data: content of a data file.
        what: the file's name for errors.

    Raises:
        DatasetError: it is not such a file.
    """
    try:
        table = pq.read_table(io.BytesIO(data), columns=[*NUMBERS, *TEXTS], use_threads=False)
        result: dict[str, Any] = {}
        for name, (dtype, width, _) in NUMBERS.items():
            column = table.column(name).combine_chunks()
            if column.null_count or (width > 1 and column.type != pa.list_(_TYPES[dtype], width)):
                raise ValueError(f"column {name} is {column.type}")
            flat = column.flatten() if width > 1 else column
            values = np.array(flat.to_numpy(zero_copy_only=False), dtype)  # a copy, so that it may be written
            result[name] = values.reshape(-1, width) if width > 1 or name in _ARRAYS else values
        return result | {name: table.column(name).to_pylist() for name in TEXTS}
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, MemoryError) as error:
        raise DatasetError(f"'{what}' is not a data file of a SANS dataset: {error}.") from error


def to_episode(columns: dict[str, Any], **facts: Any) -> Episode:
    """The episode in such columns.

    Args:
        columns: as `from_parquet` gives them.
        facts: the episode's remaining fields.

    Raises:
        EpisodeError: they contradict each other.
    """
    actions = np.hstack([columns["action.cartesian_position"], columns["action.gripper_position"]])
    return Episode(
        joint_position=columns["observation.state.joint_position"],
        cartesian_position=columns["observation.state.cartesian_position"],
        gripper_position=columns["observation.state.gripper_position"],
        action=actions[:-1],
        reward=columns["reward"][1:],
        **facts,
    )
