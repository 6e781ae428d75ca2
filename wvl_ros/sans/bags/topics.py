"""The topics of an episode, relative to a world's namespace: their types, and which of them come once a step."""

from __future__ import annotations

import os
import sys
from functools import lru_cache
from pathlib import Path

from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from wvl_ros.errors import ConfigError
from wvl_ros.worlds.droid import CAMERAS

IMAGES = {f"{camera}/image_raw": "sensor_msgs/msg/Image" for camera in CAMERAS}
CAMERA_INFOS = {f"{camera}/camera_info": "sensor_msgs/msg/CameraInfo" for camera in CAMERAS}

# One message a step, all with the stamp of the step's observation.
STEP_TOPICS = (
    IMAGES
    | CAMERA_INFOS
    | {
        "joint_states": "sensor_msgs/msg/JointState",
        "cartesian_position": "geometry_msgs/msg/PoseStamped",
        "reward": "wvl_ros/msg/Reward",
    }
)
OTHER_TOPICS = {
    "episode_status": "wvl_ros/msg/EpisodeStatus",
    "action_chunk": "wvl_ros/msg/ActionChunk",
    "diagnostics": "diagnostic_msgs/msg/DiagnosticArray",
    "clock": "rosgraph_msgs/msg/Clock",
}
TOPICS = STEP_TOPICS | OTHER_TOPICS

OWN_MESSAGES = ("ActionChunk", "EpisodeStatus", "RecordedEpisode", "Reward")

# EpisodeStatus.state
IDLE, RUNNING, FINISHED, ABORTED = range(4)


@lru_cache(maxsize=1)
def message_types() -> Typestore:
    """Definitions of all messages of `TOPICS`, read from this package's msg/ files.

    Raises:
        ConfigError: the package was installed without them.
    """
    store = get_typestore(Stores.ROS2_KILTED)
    folder = _message_folder()
    for name in OWN_MESSAGES:
        text = (folder / f"{name}.msg").read_text(encoding="utf-8")
        store.register(get_types_from_msg(text, f"wvl_ros/msg/{name}"))
    return store


def _message_folder() -> Path:
    prefixes = [*filter(None, os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep)), sys.prefix]
    folders = [Path(__file__).parents[3] / "msg", *(Path(prefix, "share", "wvl_ros", "msg") for prefix in prefixes)]
    for folder in folders:
        if all((folder / f"{name}.msg").is_file() for name in OWN_MESSAGES):
            return folder
    raise ConfigError("The message definitions of wvl_ros are not installed; run `make setup` or `colcon build` again.")
