"""The launch files under the genuine `ros2 launch`, where launch_ros is installed."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from wvl_ros.graphs import GRAPHS, Graph

pytest.importorskip("launch_ros", reason="launch_ros is not on PyPI; it comes with a stock ROS 2")
pytest.importorskip("ros2launch")

PATIENCE = 90.0  # s; machines may be busy
CODE = "import sys; from ros2cli.cli import main; sys.argv[0] = 'ros2'; sys.exit(main())"


def ros2_launch(graph: Graph, folder: Path, *words: str) -> subprocess.Popen[str]:
    prefixes = [sys.prefix, os.environ.get("AMENT_PREFIX_PATH", "")]
    env = dict(os.environ) | {
        "AMENT_PREFIX_PATH": os.pathsep.join(filter(None, prefixes)),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "ROS_DOMAIN_ID": "95",
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        "ROS_LOG_DIR": str(folder / "log"),
    }
    command = [sys.executable, "-c", CODE, "launch", "wvl_ros", f"{graph.name}.launch.py", *words]
    return subprocess.Popen(
        command, env=env, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    output, _ = process.communicate(timeout=PATIENCE)
    return process.returncode, output


@pytest.mark.parametrize("graph", GRAPHS.values(), ids=lambda graph: graph.name)
def test_show_args_explains_every_argument(graph: Graph, tmp_path: Path) -> None:
    code, output = finish(ros2_launch(graph, tmp_path, "--show-args"))
    assert code == 0, output
    for argument in graph.arguments:
        assert f"'{argument.name}':\n        {argument.description}" in output
        assert f"(default: '{argument.text}')" in output


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["task:=fly"], '"task" provided value "fly" is not valid'),
        (["tsk:=push"], "There is no argument of real_robot called 'tsk'"),
        (["episodes:=0"], "episodes:=0 is too small: give at least 1."),
        (["rviz:=true"], "rviz2 is not installed: run `apt install ros-$ROS_DISTRO-rviz2`"),
    ],
)
def test_a_wrong_argument_is_named(words: list[str], sentence: str, tmp_path: Path) -> None:
    if words == ["rviz:=true"] and shutil.which("rviz2"):
        pytest.skip("rviz2 is installed here")
    code, output = finish(ros2_launch(GRAPHS["real_robot"], tmp_path, *words))
    assert code == 1
    assert sentence in output


def test_a_run_ends_with_its_recording(tmp_path: Path) -> None:
    words = ("robot:=tabletop", "policy:=hold", "max_steps:=10", "out:=here", "instruction:=yes")
    code, output = finish(ros2_launch(GRAPHS["real_robot"], tmp_path, *words))
    assert code == 0, output
    (recording,) = (tmp_path / "here").iterdir()
    assert (recording / "bag" / "metadata.yaml").is_file()
    assert "finished cleanly" in output
    assert "  yes" in output


def test_a_killed_node_ends_the_launch_with_an_error(tmp_path: Path) -> None:
    process = ros2_launch(GRAPHS["real_robot"], tmp_path, "policy:=hold", "max_steps:=100000")
    assert process.stdout is not None
    output, deadline = "", time.monotonic() + PATIENCE
    while "step 1" not in output:
        output += process.stdout.readline()
        assert time.monotonic() < deadline, output
    started = re.search(r"\[policy-\d+\]: process started with pid \[(\d+)\]", output)
    assert started, output
    os.kill(int(started[1]), signal.SIGKILL)
    code, rest = finish(process)
    assert code == 1, output + rest
    assert "/real/policy was killed by signal 9; stopping the others." in rest
