"""The graphs: what runs for which arguments, and a sentence for each wrong one."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from wvl_ros import graphs
from wvl_ros.errors import ConfigError, UnknownNameError, WvlError
from wvl_ros.graphs import GRAPHS, IMAGINE, REAL_ROBOT, Node
from wvl_ros.worlds import droid
from wvl_ros.worlds.tasks import TASKS


def by_path(nodes: list[Node]) -> dict[str, Node]:
    return {node.path: node for node in nodes}


def test_imagine_runs_a_loop_in_imagination_and_the_tabletop_beside_it() -> None:
    nodes = by_path(IMAGINE.nodes({"task": "push", "seed": "4"}))
    loop = {f"/imagined/{name}" for name in ("world_model_sim", "policy", "recorder", "runner")}
    assert set(nodes) == loop | {"/real/world"}
    assert nodes["/real/world"].parameters["world"] == "tabletop"
    assert ("action_chunk", "/imagined/action_chunk") in nodes["/real/world"].remappings
    assert nodes["/imagined/runner"].parameters["worlds"] == ["run_episode", "/real/run_episode"]
    for node in nodes.values():
        assert ("/clock", "clock") in node.remappings
    for path in ("/imagined/world_model_sim", "/real/world"):
        assert nodes[path].parameters["task"] == "push"
        assert nodes[path].parameters["seed"] == 4


def test_imagine_from_an_episode_plays_that_episode_beside_it() -> None:
    nodes = by_path(IMAGINE.nodes({"source": "droid", "policy": "replay", "start": "30"}))
    assert nodes["/real/world"].parameters["world"] == "recorded"
    for path in ("/imagined/world_model_sim", "/real/world", "/imagined/policy"):
        assert nodes[path].parameters["source"] == "droid"
        assert nodes[path].parameters["start"] == 30


def test_imagine_without_reference_and_recording_is_three_nodes() -> None:
    nodes = IMAGINE.nodes({"reference": "none", "record": "false"})
    assert [node.executable for node in nodes] == ["world_model_sim", "policy", "runner"]
    assert nodes[-1].parameters["worlds"] == ["run_episode"]


def test_real_robot_runs_on_the_tabletop_with_the_wall_clock() -> None:
    nodes = by_path(REAL_ROBOT.nodes({"robot": "tabletop"}))
    assert set(nodes) == {f"/real/{name}" for name in ("world", "policy", "recorder", "runner")}
    assert all(not node.remappings for node in nodes.values())


def test_real_robot_plays_a_recorded_episode_in_its_own_shape() -> None:
    nodes = by_path(REAL_ROBOT.nodes({"robot": "recorded", "source": "data/sans#3", "policy": "replay"}))
    world = nodes["/real/world"].parameters
    assert (world["world"], world["source"], world["image_height"]) == ("recorded", "data/sans#3", 0)
    for name in ("policy", "runner"):
        assert nodes[f"/real/{name}"].parameters["source"] == "data/sans#3"
    for wrong in ({"robot": "recorded"}, {"source": "droid"}):
        with pytest.raises(ConfigError, match="robot:=recorded plays an episode"):
            REAL_ROBOT.nodes(wrong)


@pytest.mark.parametrize("graph", GRAPHS.values(), ids=lambda graph: graph.name)
def test_a_namespace_moves_every_name(graph: graphs.Graph) -> None:
    for node in graph.nodes({"namespace": "/lab/"}):
        assert node.namespace.startswith("/lab/")
        for value in (*node.parameters.values(), *(target for _, target in node.remappings)):
            for name in value if isinstance(value, list) else [value]:
                assert not str(name).startswith(("/imagined", "/real"))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"tsk": "push"}, "There is no argument of imagine called 'tsk'"),
        ({"task": "fly"}, "There is no task called 'fly'; choose one of: pick_place, push, stack, sweep."),
        ({"policy": "gpt"}, "There is no policy called 'gpt'"),
        ({"episodes": "many"}, "episodes:=many is not a whole number."),
        ({"episodes": "0"}, "episodes:=0 is too small: give at least 1."),
        ({"record": "perhaps"}, "record:=perhaps is neither true nor false."),
        ({"policy": "replay"}, "policy:=replay needs an episode to replay: add source:=droid"),
    ],
)
def test_a_wrong_argument_is_named(arguments: dict[str, str], sentence: str) -> None:
    with pytest.raises(WvlError) as caught:
        IMAGINE.nodes(arguments)
    assert str(caught.value).startswith(sentence)


def test_a_robot_without_driver_is_unknown() -> None:
    with pytest.raises(UnknownNameError, match="'panda'; choose one of: recorded, tabletop"):
        REAL_ROBOT.nodes({"robot": "panda"})


def test_a_word_that_is_no_assignment_is_named() -> None:
    with pytest.raises(ConfigError, match="'task=push' is not an argument: write name:=value"):
        graphs.parse_assignments(["task=push"])


@given(st.text(min_size=1).filter(lambda name: ":=" not in name + ":"), st.text())
def test_assignments_keep_any_value(name: str, value: str) -> None:
    assert graphs.parse_assignments([f"{name}:={value}"]) == {name: value}


@pytest.mark.parametrize("graph", GRAPHS.values(), ids=lambda graph: graph.name)
def test_defaults_as_the_user_would_write_them_are_the_defaults(graph: graphs.Graph) -> None:
    written = {argument.name: argument.text for argument in graph.arguments}
    assert graph.values(written) == graph.values({})
    assert all(argument.description.endswith(".") for argument in graph.arguments)


def test_names_match_the_package_they_stand_for() -> None:
    assert set(graphs.TASKS) == set(TASKS)
    assert graphs.CAMERAS == droid.CAMERAS
    for graph in GRAPHS.values():
        for node in graph.nodes({}):
            assert importlib.util.find_spec(f"wvl_ros.nodes.{node.executable}") is not None
            assert (graphs.share() / "scripts" / node.executable).is_file()


@pytest.mark.parametrize("graph", GRAPHS.values(), ids=lambda graph: graph.name)
def test_the_parameter_file_speaks_of_nodes_of_the_graph(graph: graphs.Graph) -> None:
    content = yaml.safe_load((graphs.share() / "config" / f"{graph.name}.yaml").read_text(encoding="utf-8"))
    names = {node.name for node in graph.nodes({})}
    assert {key.rpartition("/")[2] for key in content} <= names | {"**"}


def test_the_robot_model_names_meshes_that_exist() -> None:
    urdf = graphs.robot_description()
    meshes = [part.partition('"')[0] for part in urdf.split('filename="')[1:]]
    assert len(meshes) > 10
    assert all(mesh.startswith("file:///") and Path(mesh.removeprefix("file://")).is_file() for mesh in meshes)


def test_rviz_shows_both_worlds_in_the_namespace_they_are_in() -> None:
    nodes = [node for node in IMAGINE.nodes({"rviz": "true", "namespace": "lab"}) if node.package != "wvl_ros"]
    assert [node.package for node in nodes] == ["rviz2"] + ["robot_state_publisher", "tf2_ros"] * 2
    remappings = dict(nodes[0].remappings)
    assert remappings["/imagined/wrist_image_left/image_raw"] == "/lab/imagined/wrist_image_left/image_raw"
    assert all(not node.required for node in nodes)
