"""The front end for `ros2 launch`: turns a graph of `wvl_ros.graphs` into a LaunchDescription."""

from __future__ import annotations

import functools
import os
import sys
from typing import Any

from ament_index_python.packages import PackageNotFoundError, get_package_prefix
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction, RegisterEventHandler, Shutdown
from launch.event_handlers import OnProcessExit
from launch.events.process import ProcessExited
from launch_ros.actions import Node as LaunchNode
from launch_ros.parameter_descriptions import ParameterValue

from wvl_ros.errors import ConfigError, WvlError
from wvl_ros.graphs import PACKAGE, Graph, Node, Value, parse_assignments, share

CLOSING_SECONDS = "20"  # after SIGINT, before SIGTERM: a recorder may still be closing its bag and rendering


def describe(graph: Graph) -> LaunchDescription:
    """The launch description of a graph.

    The end of a required node shuts all down. `ros2 launch` exits with 0 after a runner that ended well and otherwise
    with 1, because launch knows no other codes.
    """
    declared = [
        DeclareLaunchArgument(
            argument.name,
            default_value=argument.text,
            description=argument.description,
            choices=list(argument.choices) or None,
        )
        for argument in graph.arguments
    ]
    return LaunchDescription([*declared, OpaqueFunction(function=functools.partial(_start, graph=graph))])


def _start(context: LaunchContext, graph: Graph) -> list[Any]:
    """The actions for the arguments' values, which are known only now."""
    if any(os.path.basename(word) == f"{graph.name}.launch.py" for word in sys.argv):
        graph.values(parse_assignments(context.argv))  # launch itself accepts unknown names; included files get others'
    names = {argument.name for argument in graph.arguments}
    nodes = graph.nodes({name: value for name, value in context.launch_configurations.items() if name in names})
    actions: list[Any] = []
    for node in nodes:
        action = _action(context, graph, node)
        actions.append(action)
        if node.required:
            ended = functools.partial(_on_end, node=node)
            actions.append(RegisterEventHandler(OnProcessExit(target_action=action, on_exit=ended)))
    return actions


def _action(context: LaunchContext, graph: Graph, node: Node) -> LaunchNode:
    config = share() / "config"
    try:
        get_package_prefix(node.package)
    except PackageNotFoundError:
        name = node.package.replace("_", "-")
        raise ConfigError(
            f"{node.package} is not installed: run `apt install ros-$ROS_DISTRO-{name}`, or leave out rviz:=true."
        ) from None
    own = {name: _typed(value) for name, value in node.parameters.items()}
    files = [str(config / f"{graph.name}.yaml")] if node.package == PACKAGE else []
    env = {}
    if "FASTDDS_DEFAULT_PROFILES_FILE" not in context.environment:
        env["FASTDDS_DEFAULT_PROFILES_FILE"] = str(config / "shm.xml")
    return LaunchNode(
        package=node.package,
        executable=node.executable,
        name=node.name,
        namespace=node.namespace,
        parameters=[*files, *([own] if own else [])],
        remappings=list(node.remappings),
        arguments=list(node.arguments),
        additional_env=env,
        output="screen",
        sigterm_timeout=CLOSING_SECONDS,
    )


def _typed(value: Value) -> Any:
    """Keeps a text a text: launch would read 'yes' as a truth value and '7' as a number."""
    if isinstance(value, str):
        return ParameterValue(value, value_type=str)
    if isinstance(value, list):
        return ParameterValue(value, value_type=list[str])
    return value


def _on_end(event: ProcessExited, context: LaunchContext, node: Node) -> list[Any] | None:
    if context.is_shutdown:
        return None
    if event.returncode:
        how = f"was killed by signal {-event.returncode}" if event.returncode < 0 else f"ended with {event.returncode}"
        raise WvlError(f"{node.path} {how}; stopping the others.")
    return [Shutdown(reason=f"{node.path} has ended")]
