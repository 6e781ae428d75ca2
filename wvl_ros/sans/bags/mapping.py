"""Which topics of a bag are an episode's cameras, states and commands: a `TopicMapping`, one YAML file each.

Topic names are relative to the namespace that is asked for ('' is the root); a name with a leading '/' is taken as it
is. Where a list of names is given, the first that the bag has is used. A camera's topic may also be there as
`<name>/compressed` (image_transport). '{arm}' in a joint's name stands for each of `arms` in turn.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from wvl_ros.errors import BagError, ConfigError, UnknownNameError
from wvl_ros.sans.bags.mcap_file import Topic
from wvl_ros.worlds.droid import FINGER_TRAVEL

FOLDER = Path(__file__).parent / "mappings"
OWN = "wvl_ros"
AUTO = "auto"
IMAGE_TYPES = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")
COMMAND_TYPES = ("sensor_msgs/msg/JointState", "geometry_msgs/msg/PoseStamped", "std_msgs/msg/Float64MultiArray")
GRIPPER_TYPES = (
    *("sensor_msgs/msg/JointState", "std_msgs/msg/Float64MultiArray", "std_msgs/msg/Float64", "std_msgs/msg/Float32"),
)
_LARGEST = 8192


@dataclass(frozen=True)
class CameraTopic:
    """Where a camera's pictures come from and what part of them, at which size, becomes the episode's.

    Attributes:
        topics: names, the first that is there counts.
        crop: (top, left, height, width) in pixels of the original, None for all of it.
        size: (height, width) to scale to, None to keep.
    """

    topics: tuple[str, ...]
    crop: tuple[int, int, int, int] | None = None
    size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        _check_names("A camera's topics", self.topics)
        numbers = (*(self.crop or ()), *(self.size or ()))
        if not all(isinstance(n, int) and 0 <= n <= _LARGEST for n in numbers) or 0 in (
            *(self.crop or (1,))[2:],
            *(self.size or ()),
        ):
            raise ConfigError("A camera's crop is [top, left, height, width] and its size [height, width], in pixels.")
        if (self.crop is not None and len(self.crop) != 4) or (self.size is not None and len(self.size) != 2):
            raise ConfigError("A camera's crop is [top, left, height, width] and its size [height, width], in pixels.")


@dataclass(frozen=True)
class GripperJoint:
    """A joint that tells the gripper's position: its value when `open` and when `closed` (m or rad)."""

    name: str
    open: float = FINGER_TRAVEL
    closed: float = 0.0

    def __post_init__(self) -> None:
        if not self.name or self.open == self.closed:
            raise ConfigError("A gripper's joint needs a name and different values for open and closed.")

    def position(self, value: Any) -> Any:
        """0 open .. 1 closed, of a joint value."""
        return (value - self.open) / (self.closed - self.open)


@dataclass(frozen=True)
class TopicMapping:
    """The topics of an episode.

    Attributes:
        cameras: the episode's camera names -> where they are.
        joint_states: topics with the arm's joints (sensor_msgs/JointState), by `joint_names`.
        gripper_states: topics with the gripper's joint (sensor_msgs/JointState), one of `gripper_joints`.
        pose: topics with the measured pose (geometry_msgs/PoseStamped) of the frame that `flange_to_pose` leads to; ()
            computes the flange's pose from the joints.
        flange_to_pose: xyz in m and extrinsic xyz Euler angles in rad of that frame, seen from the flange.
        commands: topics with the commanded configuration: a JointState by names, a Float64MultiArray of seven joints,
            or a PoseStamped of the frame of `flange_to_pose`; without one the next measured pose is the action.
        gripper_commands: topics with the commanded gripper joint; without one, the gripper counts as commanded closed
            when it is measured to be closed by more than `gripper_threshold` (None takes the measured position).
        steps: topic of wvl_ros/Reward, whose stamps are the control steps; '' makes a grid at the control rate.
        status: topic of wvl_ros/EpisodeStatus, '' for none.
        image_tolerance: s an image may be away from its step; None is half a control period.
        state_gap: s a state may be old.
        source: the episodes' `source` when nobody says otherwise.
    """

    name: str
    cameras: Mapping[str, CameraTopic]
    joint_states: tuple[str, ...]
    gripper_states: tuple[str, ...]
    description: str = ""
    arms: tuple[str, ...] = ("fr3",)
    joint_names: tuple[str, ...] = tuple(f"{{arm}}_joint{i}" for i in range(1, 8))
    gripper_joints: tuple[GripperJoint, ...] = (GripperJoint("{arm}_finger_joint1"),)
    pose: tuple[str, ...] = ()
    flange_to_pose: tuple[float, ...] = (0.0,) * 6
    commands: tuple[str, ...] = ()
    gripper_commands: tuple[str, ...] = ()
    gripper_threshold: float | None = 0.1
    steps: str = ""
    status: str = ""
    image_tolerance: float | None = None
    state_gap: float = 0.2
    source: str = "teleop/robot"

    def __post_init__(self) -> None:
        if not self.cameras:
            raise ConfigError(f"The mapping '{self.name}' names no cameras.")
        for name in ("joint_states", "gripper_states"):
            _check_names(f"{name} of the mapping '{self.name}'", getattr(self, name))
        for name in ("pose", "commands", "gripper_commands"):
            _check_names(f"{name} of the mapping '{self.name}'", getattr(self, name), may_be_empty=True)
        if len(set(self.joint_names)) != 7:
            raise ConfigError(f"The mapping '{self.name}' needs seven different joint_names, in the arm's order.")
        if not self.arms or not self.gripper_joints:
            raise ConfigError(f"The mapping '{self.name}' needs at least one of arms and of gripper_joints.")
        if len(self.flange_to_pose) != 6:
            raise ConfigError(f"flange_to_pose of the mapping '{self.name}' is x, y, z, roll, pitch, yaw.")
        if not 0 < self.state_gap <= 10 or (self.image_tolerance is not None and not 0 < self.image_tolerance <= 10):
            raise ConfigError(f"image_tolerance and state_gap of the mapping '{self.name}' lie between 0 and 10 s.")

    def camera_topics(self, camera: str, namespace: str = "") -> list[str]:
        """Where a camera may be in a bag, raw before compressed."""
        names = [full_name(name, namespace) for name in self.cameras[camera].topics]
        return names + [f"{name}/compressed" for name in names if not name.endswith("/compressed")]


@dataclass(frozen=True)
class Topics:
    """What of a mapping a bag really has: full topic names; '' or missing where it has none."""

    mapping: TopicMapping
    namespace: str
    cameras: dict[str, str] = field(default_factory=dict)
    joint_states: str = ""
    gripper_states: str = ""
    pose: str = ""
    commands: str = ""
    gripper_commands: str = ""
    steps: str = ""
    status: str = ""


def full_name(name: str, namespace: str) -> str:
    """A topic's full name."""
    return name if name.startswith("/") else f"{namespace.rstrip('/')}/{name}"


def resolve(mapping: TopicMapping, topics: Mapping[str, Topic], namespace: str) -> tuple[Topics, list[str]]:
    """The mapping's topics in a bag, and what is missing, each with what would have done."""
    missing: list[str] = []

    def find(what: str, names: Sequence[str], types: Collection[str], needed: bool) -> str:
        full = [full_name(name, namespace) for name in names]
        for name in full:
            if name in topics and topics[name].type in types and topics[name].encoding == "cdr":
                return name
        if needed:
            wrong = next((f", which is of type {topics[n].type}" for n in full if n in topics), "")
            missing.append(f"'{full[0]}' ({what}{wrong})")
        return ""

    state = ("sensor_msgs/msg/JointState",)
    pose = ("geometry_msgs/msg/PoseStamped",)
    cameras = {c: find(f"camera {c}", mapping.camera_topics(c, namespace), IMAGE_TYPES, True) for c in mapping.cameras}
    found = Topics(
        mapping,
        namespace,
        {camera: topic for camera, topic in cameras.items() if topic},
        find("joint states", mapping.joint_states, state, True),
        find("the gripper's state", mapping.gripper_states, state, True),
        find("the measured pose", mapping.pose, pose, bool(mapping.steps)),
        find("commands", mapping.commands, COMMAND_TYPES, False),
        find("gripper commands", mapping.gripper_commands, GRIPPER_TYPES, False),
        find("rewards", [mapping.steps] if mapping.steps else [], ("wvl_ros/msg/Reward",), bool(mapping.steps)),
        find("the status", [mapping.status] if mapping.status else [], ("wvl_ros/msg/EpisodeStatus",), False),
    )
    return found, missing


def shipped() -> list[str]:
    """Names of the mappings in this package."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_mapping(name: str) -> TopicMapping:
    """A shipped mapping by its name, or one's own by the path of its YAML file.

    Raises:
        UnknownNameError: there is none of that name. ConfigError: the file says something that is not possible.
    """
    path = FOLDER / f"{name}.yaml" if name in shipped() else Path(name).expanduser()
    if not path.is_file():
        raise UnknownNameError("mapping (nor a file)", name, [AUTO, *shipped()])
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"The mapping '{path}' cannot be read: {str(error).splitlines()[0]}.") from error
    if not isinstance(values, dict):
        raise ConfigError(f"The mapping '{path}' is not a table of names.")
    try:
        return _mapping(path.stem, values)
    except (TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"The mapping '{path}' says something impossible: {error}.") from error


def _mapping(name: str, values: dict[str, Any]) -> TopicMapping:
    known = {f.name for f in fields(TopicMapping)}
    if unknown := set(values) - known:
        raise ConfigError(f"The mapping '{name}' has the unknown entry '{sorted(unknown)[0]}'.")
    if absent := {"cameras", "joint_states", "gripper_states"} - set(values):
        raise ConfigError(f"The mapping '{name}' lacks '{sorted(absent)[0]}'.")
    values = {"name": name} | values
    values["cameras"] = {str(camera): _camera(row) for camera, row in values["cameras"].items()}
    for key in ("joint_states", "gripper_states", "pose", "commands", "gripper_commands", "arms", "joint_names"):
        if key in values:
            values[key] = _names(values[key])
    if "gripper_joints" in values:
        values["gripper_joints"] = tuple(GripperJoint(**row) for row in values["gripper_joints"])
    if "flange_to_pose" in values:
        values["flange_to_pose"] = tuple(float(n) for n in values["flange_to_pose"])
    return TopicMapping(**values)


def _camera(row: Any) -> CameraTopic:
    if not isinstance(row, dict):
        return CameraTopic(_names(row))
    crop, size = row.get("crop"), row.get("size")
    rest = {key: value for key, value in row.items() if key not in ("topics", "crop", "size")}
    return CameraTopic(
        _names(row.get("topics", ())), tuple(crop) if crop else None, tuple(size) if size else None, **rest
    )


def _names(value: Any) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value or ())


def _check_names(what: str, names: Sequence[str], *, may_be_empty: bool = False) -> None:
    if not (names or may_be_empty) or not all(isinstance(name, str) and name.strip("/") for name in names):
        raise ConfigError(f"{what} must be topic names, but are {list(names)}.")


def choose(
    topics: Mapping[str, Topic], name: str = AUTO, namespace: str = "", *, bag: object = "", own: str | None = None
) -> Topics:
    """The mapping that fits a bag, with the bag's own topic names.

    Args:
        topics: of the bag.
        name: of a mapping, or a path, or 'auto' for the one shipped mapping whose topics are all there.
        namespace: that relative topic names are below.
        bag: how to call the bag in errors.
        own: namespace of our own nodes' topics in the bag, None when there is none.

    Raises:
        BagError: none fits, or several do. UnknownNameError, ConfigError: see `load_mapping`.
    """
    if name == AUTO and own is not None:
        name = OWN
    if name != AUTO:
        mapping = load_mapping(name)
        found, missing = resolve(mapping, topics, own if own is not None and mapping.steps else namespace)
        if missing:
            raise BagError(
                f"The bag '{bag}' has no messages on {', '.join(missing)} that the mapping '{mapping.name}' needs; "
                "record them as well, or name another mapping or namespace."
            )
        return found
    tried = [(other, *resolve(load_mapping(other), topics, namespace)) for other in shipped() if other != OWN]
    fits = [(other, found) for other, found, missing in tried if not missing]
    if len(fits) == 1:
        return fits[0][1]
    if fits:
        names = ", ".join(other for other, _ in fits)
        raise BagError(f"The bag '{bag}' fits several mappings: {names}; name one with --mapping.")
    other, _, missing = min(tried, key=lambda row: len(row[2]))
    raise BagError(
        f"The bag '{bag}' fits no shipped mapping; the nearest, '{other}', lacks {', '.join(missing)}. Name the right "
        f"--namespace, or copy {other}.yaml, write this bag's topics into it and give it to --mapping."
    )
