"""The graphs of nodes this package starts, in plain data: read by the launch files and by `wvl up`.

Two graphs: `imagine` (the policy acts in the world model, namespace `/imagined`, beside a reference in `/real`) and
`real_robot` (the policy acts on the robot or its stand-in, namespace `/real`). Nothing here imports ROS.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from wvl_ros.errors import ConfigError, UnknownNameError

Value = bool | int | float | str | list[str]
Values = dict[str, Value]

PACKAGE = "wvl_ros"
TASKS = ("pick_place", "push", "stack", "sweep")
POLICIES = ("small", "openvla_oft", "openpi", "random", "replay", "hold")
FRESH = ("", "tabletop")  # sources that are no episode
CAMERAS = ("exterior_image_1_left", "exterior_image_2_left", "wrist_image_left")  # as droid.CAMERAS, without numpy
_CLOCK = ("/clock", "clock")  # relative, so that two simulated worlds have two clocks


@dataclass(frozen=True)
class Argument:
    """What a user may set with `name:=value`.

    Attributes:
        default: as the user would write it; its type is the argument's.
        choices: the only values allowed; empty allows any.
        least: the smallest number allowed.
        path: whether the value may be a path, in which `~` is the home folder.
    """

    name: str
    default: bool | int | str
    description: str
    choices: tuple[str, ...] = ()
    least: int | None = None
    path: bool = False

    @property
    def text(self) -> str:
        """The default as a user writes it."""
        return str(self.default).lower() if isinstance(self.default, bool) else str(self.default)

    def parse(self, text: str) -> bool | int | str:
        """The value that `text` stands for.

        Raises:
            ConfigError: it is no number, no truth value, or too small.
            UnknownNameError: it is none of the choices.
        """
        if isinstance(self.default, bool):
            if text.lower() not in ("true", "false"):
                raise ConfigError(f"{self.name}:={text} is neither true nor false.")
            return text.lower() == "true"
        if isinstance(self.default, int):
            try:
                number = int(text)
            except ValueError:
                raise ConfigError(f"{self.name}:={text} is not a whole number.") from None
            if self.least is not None and number < self.least:
                raise ConfigError(f"{self.name}:={text} is too small: give at least {self.least}.")
            return number
        if self.choices and text not in self.choices:
            raise UnknownNameError(self.name, text, self.choices)
        return str(Path(text).expanduser()) if self.path and text.startswith("~") else text


@dataclass(frozen=True)
class Node:
    """One process.

    Attributes:
        namespace: absolute, such as `/imagined`.
        parameters: override the graph's YAML file in config/.
        remappings: pairs (from, to).
        required: the graph ends when this node does.
        package: its ROS package; another than wvl_ros must be installed in a ROS 2.
        arguments: of its command line, before the ROS ones.
    """

    executable: str
    name: str
    namespace: str
    parameters: Mapping[str, Value] = field(default_factory=dict)
    remappings: tuple[tuple[str, str], ...] = ()
    required: bool = True
    package: str = PACKAGE
    arguments: tuple[str, ...] = ()

    @property
    def path(self) -> str:
        """Namespace and name: `/imagined/policy`."""
        return f"{self.namespace.rstrip('/')}/{self.name}"


@dataclass(frozen=True)
class Graph:
    """A set of nodes that run together. `runner` names the one whose end is the end of the work."""

    name: str
    description: str
    arguments: tuple[Argument, ...]
    build: Callable[[Values], list[Node]]
    runner: str = "runner"

    def values(self, given: Mapping[str, str]) -> Values:
        """All arguments with their values, the given ones parsed.

        Raises:
            UnknownNameError: an argument or a choice that does not exist.
            ConfigError: a value that cannot be.
        """
        known = {argument.name: argument for argument in self.arguments}
        for name in given:
            if name not in known:
                raise UnknownNameError(f"argument of {self.name}", name, known)
        values: Values = {name: a.parse(given[name]) if name in given else a.default for name, a in known.items()}
        if values["policy"] == "replay" and values.get("source", "") in FRESH:
            raise ConfigError("policy:=replay needs an episode to replay: add source:=droid or the path of one.")
        if "robot" in values and (values["robot"] == "recorded") != (values["source"] not in FRESH):
            raise ConfigError("robot:=recorded plays an episode: give it and a source together, such as source:=droid.")
        return values

    def nodes(self, given: Mapping[str, str]) -> list[Node]:
        """The nodes to start for the given arguments; raises like `values`."""
        return self.build(self.values(given))


def parse_assignments(words: Iterable[str]) -> dict[str, str]:
    """`['task:=push']` -> `{'task': 'push'}`.

    Raises:
        ConfigError: a word without `:=`.
    """
    given = {}
    for word in words:
        name, separator, value = word.partition(":=")
        if not separator or not name:
            raise ConfigError(f"'{word}' is not an argument: write name:=value, for example task:=push.")
        given[name] = value
    return given


def share() -> Path:
    """The folder with config/, launch/ and rviz/: of the source tree, or share/wvl_ros of the install.

    Raises:
        ConfigError: the package was installed without it.
    """
    package = Path(__file__).parent
    for folder in (package.parent, *(parent / "share" / PACKAGE for parent in package.parents)):
        if (folder / "config" / "shm.xml").is_file():
            return folder
    raise ConfigError(f"config/shm.xml of {PACKAGE} is missing: install it with `make setup` or `colcon build`.")


def _pick(values: Values, *names: str) -> Values:
    return {name: values[name] for name in names}


def _namespace(values: Values, last: str) -> str:
    prefix = str(values["namespace"]).strip("/")
    return f"/{prefix}/{last}" if prefix else f"/{last}"


def _loop(
    values: Values, namespace: str, worlds: list[str], clock: tuple[tuple[str, str], ...], reference: str = ""
) -> list[Node]:
    """What both graphs have besides their worlds: policy, recorder (of the reference's namespace, too), runner."""
    start = {"source": values.get("source", ""), "start": values.get("start", 0), "seed": values["seed"]}
    checkpoint = {"policy": values["policy"], "checkpoint": values["policy_checkpoint"]}
    episodes = _pick(values, "episodes", "task", "instruction")
    nodes = [Node("policy", "policy", namespace, {**checkpoint, **start}, clock)]
    awaited = ["action_chunk"]
    if values["record"]:
        awaited.append("recorded_episode")
        noted = _pick(values, "out", "iteration") | {"world_model_checkpoint": values.get("world_model", "")}
        # A policy without weights goes by its own name.
        plain = values["policy"] in ("random", "replay", "hold")
        noted["policy_checkpoint"] = values["policy" if plain else "policy_checkpoint"]
        beside: Values = {"reference": reference} if reference else {}
        nodes.append(Node("recorder", "recorder", namespace, noted | beside, clock))
    nodes.append(
        Node("runner", "runner", namespace, {**episodes, **start, "worlds": worlds, "wait_for": awaited}, clock)
    )
    return nodes


def _viewers(values: Values, worlds: list[str]) -> list[Node]:
    """RViz with our layout, and for each world the robot's model and where it stands."""
    if not values["rviz"]:
        return []
    images = [f"{camera}/image_raw" for camera in CAMERAS]
    # The layout knows no prefix.
    topics = [f"{world}/{topic}" for world in worlds for topic in (*images, "robot_description")]
    moved = tuple((f"/{topic}", _namespace(values, topic)) for topic in topics) if values["namespace"] else ()
    nodes = [Node("rviz2", "rviz2", "/", {}, moved, False, "rviz2", ("-d", str(layout())))]
    for world in worlds:
        namespace, publisher = _namespace(values, world), "robot_state_publisher"
        model: Values = {"robot_description": robot_description(), "frame_prefix": f"{world}/"}
        nodes.append(Node(publisher, publisher, namespace, model, (), False, publisher))
        transform = ("--frame-id", "base", "--child-frame-id", f"{world}/base")
        nodes.append(Node("static_transform_publisher", "base", namespace, {}, (), False, "tf2_ros", transform))
    return nodes


def layout() -> Path:
    """The RViz layout."""
    return share() / "rviz" / "imagined_and_real.rviz"


def robot_description() -> str:
    """The FR3's URDF with its meshes as file:// addresses.

    Raises:
        ConfigError: franky-sim, whose assets they are, is not installed.
    """
    import importlib.util

    package = importlib.util.find_spec("franky_sim")
    if package is None or package.origin is None:
        raise ConfigError("The robot's model comes from franky-sim: run `pip install --no-deps franky-sim`.")
    assets = Path(package.origin).parent / "assets"
    urdf = (assets / "fr3.urdf").read_text(encoding="utf-8")
    return urdf.replace('filename="meshes/', f'filename="{(assets / "meshes").as_uri()}/')


def _imagine(values: Values) -> list[Node]:
    imagined, real = _namespace(values, "imagined"), _namespace(values, "real")
    episode = _pick(values, "task", "instruction", "source", "start", "seed", "max_steps")
    worlds, reference = ["run_episode"], ""
    nodes = [
        Node(
            "world_model_sim", "world_model_sim", imagined, {"checkpoint": values["world_model"], **episode}, (_CLOCK,)
        )
    ]
    if values["reference"] == "auto":
        kind = "tabletop" if values["source"] in FRESH else "recorded"
        # The same chunks drive it, so that one can see beside the imagined frames what would have happened.
        follow = ("action_chunk", f"{imagined}/action_chunk")
        nodes.append(Node("world", "world", real, {"world": kind, **episode}, (_CLOCK, follow)))
        worlds.append(f"{real}/run_episode")
        reference = real
    nodes += _loop(values, imagined, worlds, (_CLOCK,), reference)
    return nodes + _viewers(values, ["imagined", "real"] if len(worlds) > 1 else ["imagined"])


def _real_robot(values: Values) -> list[Node]:
    real = _namespace(values, "real")
    world: Values = {"world": values["robot"], **_pick(values, "task", "instruction", "seed", "max_steps")}
    if values["robot"] == "recorded":  # in its own shape
        world |= {"image_height": 0, "image_width": 0, **_pick(values, "source", "start")}
    nodes = [Node("world", "world", real, world), *_loop(values, real, ["run_episode"], ())]
    return nodes + _viewers(values, ["real"])


_COMMON = (
    Argument("task", "pick_place", "The task of every episode.", TASKS),
    Argument("instruction", "", "The instruction for the policy; empty takes one of the task's own wordings."),
    Argument("policy", "small", "Which policy acts.", POLICIES),
    Argument(
        "policy_checkpoint",
        "small",
        "The policy's weights: 'small' or the path of a checkpoint; of openpi the server, host:8000.",
        path=True,
    ),
    Argument("episodes", 1, "How many episodes to run, with seeds seed, seed + 1, ...", least=1),
    Argument("seed", 0, "The seed of the first episode; a negative one draws it.", least=-1),
    Argument("max_steps", 0, "Control steps (1/15 s) an episode may last; 0 takes the task's own limit.", least=0),
    Argument("record", True, "Whether to record each episode: a bag, a video and a contact sheet."),
    Argument("out", "recordings", "The folder of the recordings.", path=True),
    Argument("iteration", 0, "The iteration of the improvement loop, noted in each recording.", least=0),
    Argument("namespace", "", "A namespace around the whole graph, so that two graphs can share a ROS domain."),
    Argument("rviz", False, "Whether to open RViz with the cameras and the robot."),
)

_START = Argument("start", 0, "The step inside the source to start from.", least=0)

IMAGINE = Graph(
    "imagine",
    "The policy acts in the world model; in /real the tabletop or the recorded episode gets the same actions.",
    (
        Argument(
            "source",
            "",
            "What to start from: empty for a fresh tabletop reset, 'droid' for the shipped DROID episode, or the path"
            " of a bag, an episode file, a DROID folder or DATASET#INDEX.",
            path=True,
        ),
        _START,
        Argument("world_model", "small", "The world model's weights: 'small' or the path of a checkpoint.", path=True),
        Argument("reference", "auto", "Whether to run the reference in /real.", ("auto", "none")),
        *_COMMON,
    ),
    _imagine,
)

REAL_ROBOT = Graph(
    "real_robot",
    "The policy acts on the robot in real time, or on its stand-in, the tabletop; or a recorded episode is played.",
    (
        Argument(
            "robot",
            "tabletop",
            "The robot to act on; 'recorded' plays the source in real time, whatever the policy does.",
            ("tabletop", "recorded"),
        ),
        Argument(
            "source",
            "",
            "The episode for robot:=recorded and policy:=replay: 'droid', a bag, an episode file or DATASET#INDEX.",
            path=True,
        ),
        _START,
        *_COMMON,
    ),
    _real_robot,
)

GRAPHS = {graph.name: graph for graph in (IMAGINE, REAL_ROBOT)}
