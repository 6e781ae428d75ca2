"""What a SANS dataset consists of: its format, and where each file of the LeRobotDataset v3.0 folder lies."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wvl_ros.errors import DatasetError
from wvl_ros.worlds.droid import CONTROL_HZ, JOINT_NAMES

VERSION = 1  # of what meta/sans.json adds; a reader of 1 refuses others
LEROBOT_VERSION = "v3.0"
CODECS = ("h264", "lossless")
FILES_PER_CHUNK = 1000
EPISODES_PER_FILE = 250  # rows of a file in meta/episodes, each of which is written anew with every episode

SANS = Path("meta/sans.json")
INFO = Path("meta/info.json")
STATS = Path("meta/stats.json")
TASKS = Path("meta/tasks.parquet")
LOCK = Path("meta/.lock")
JOURNAL = Path("meta/.journal")
DRAFTS = Path("meta/.drafts")
IMAGES = "observation.images."

_POSE = ["x", "y", "z", "roll", "pitch", "yaw"]
_JOINTS = list(JOINT_NAMES)
NUMBERS: dict[str, tuple[str, int, list[str] | None]] = {  # name -> dtype, width, names of the elements
    "observation.state": ("float32", 8, [*_JOINTS, "gripper"]),
    "observation.state.joint_position": ("float64", 7, _JOINTS),
    "observation.state.cartesian_position": ("float64", 6, _POSE),
    "observation.state.gripper_position": ("float64", 1, ["gripper"]),
    "action": ("float32", 7, [*_POSE, "gripper"]),
    "action.cartesian_position": ("float64", 6, _POSE),
    "action.gripper_position": ("float64", 1, ["gripper"]),
    "reward": ("float32", 1, None),
    "next.done": ("bool", 1, None),
    "iteration": ("int64", 1, None),
    "timestamp": ("float32", 1, None),
    "frame_index": ("int64", 1, None),
    "episode_index": ("int64", 1, None),
    "index": ("int64", 1, None),
    "task_index": ("int64", 1, None),
}
TEXTS = ("outcome", "outcome_source", "source", "world_model", "policy")


@dataclass(frozen=True)
class DatasetFormat:
    """What all episodes of a dataset have in common.

    Attributes:
        cameras: name -> (height, width) in px.
        fps: rows and video frames a second.
        codec: 'h264' (about 40 dB and better) or 'lossless' (bit-exact).
    """

    cameras: Mapping[str, tuple[int, int]]
    fps: float = float(CONTROL_HZ)
    codec: str = "h264"

    def __post_init__(self) -> None:
        for name, size in self.cameras.items():
            if not re.fullmatch(r"\w[\w.-]*", name):
                raise DatasetError(f"A camera cannot be called '{name}'; use letters, digits, '_', '-' and '.'.")
            if len(size) != 2 or not all(isinstance(n, int) and 16 <= n <= 8192 for n in size):
                raise DatasetError(f"Camera '{name}' cannot have {size} as its (height, width); use 16 to 8192 px.")
        if not (math.isfinite(self.fps) and 0 < self.fps <= 1000):
            raise DatasetError(f"A dataset cannot have {self.fps} frames a second; use a number up to 1000.")
        if self.codec not in CODECS:
            raise DatasetError(f"There is no codec called '{self.codec}'; choose one of: {', '.join(CODECS)}.")
        sizes = {name: (int(size[0]), int(size[1])) for name, size in self.cameras.items()}
        object.__setattr__(self, "cameras", sizes)
        object.__setattr__(self, "fps", float(self.fps))

    def __str__(self) -> str:
        cameras = ", ".join(f"{name} {width}x{height}" for name, (height, width) in sorted(self.cameras.items()))
        return f"{self.fps:g} fps, {self.codec}, cameras: {cameras or 'none'}"

    def to_json(self) -> dict[str, Any]:
        """Plain data for meta/sans.json."""
        return {
            "cameras": {name: list(size) for name, size in self.cameras.items()},
            "fps": self.fps,
            "codec": self.codec,
        }

    @classmethod
    def from_json(cls, data: Any) -> DatasetFormat:
        """What `to_json` gave.

        Raises:
            DatasetError: it is something else.
        """
        try:
            cameras = {str(name): (size[0], size[1]) for name, size in data["cameras"].items()}
            return cls(cameras, float(data["fps"]), str(data["codec"]))
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise DatasetError("The format in meta/sans.json is damaged; copy the dataset again.") from error

    def features(self) -> dict[str, dict[str, Any]]:
        """LeRobot's `features` of meta/info.json: one entry a column of the data files, one a video."""
        features: dict[str, dict[str, Any]] = {}
        for camera, (height, width) in self.cameras.items():
            features[IMAGES + camera] = {
                "dtype": "video",
                "shape": [height, width, 3],
                "names": ["height", "width", "channels"],
                "info": {
                    "video.height": height,
                    "video.width": width,
                    "video.channels": 3,
                    "video.codec": "h264",
                    "video.pix_fmt": "gbrp" if self.codec == "lossless" else "yuv444p",
                    "video.fps": self.lerobot_fps,
                    "video.is_depth_map": False,
                    "has_audio": False,
                },
            }
        for name, (dtype, width, names) in NUMBERS.items():
            features[name] = {"dtype": dtype, "shape": [width], "names": names}
        return features | {name: {"dtype": "string", "shape": [1], "names": None} for name in TEXTS}

    @property
    def lerobot_fps(self) -> int | float:
        """The rate as LeRobot writes it: an integer where it is one."""
        return int(self.fps) if self.fps.is_integer() else self.fps


def chunk_and_file(index: int) -> tuple[int, int]:
    """Where LeRobot keeps the file number `index`: (chunk, file)."""
    return index // FILES_PER_CHUNK, index % FILES_PER_CHUNK


def data_file(episode: int) -> Path:
    """The parquet file of an episode, relative to the dataset."""
    return Path("data") / "chunk-{:03d}/file-{:03d}.parquet".format(*chunk_and_file(episode))


def video_file(episode: int, camera: str) -> Path:
    """The MP4 of an episode's camera, relative to the dataset."""
    return Path("videos") / (IMAGES + camera) / "chunk-{:03d}/file-{:03d}.mp4".format(*chunk_and_file(episode))


def episodes_file(number: int) -> Path:
    """The `number`th file with rows of episodes, relative to the dataset."""
    return Path("meta/episodes") / "chunk-{:03d}/file-{:03d}.parquet".format(*chunk_and_file(number))


def is_dataset(path: Path | str) -> bool:
    """Whether a folder is a SANS dataset (sound or not)."""
    return (Path(path).expanduser() / SANS).is_file()
