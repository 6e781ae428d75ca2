"""The command line: quick help, results for people and machines, one sentence for each error."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from wvl_ros import cli
from wvl_ros.errors import ConfigError


def wvl(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "wvl_ros.cli", *words], capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A command module in the place of `wvl render`'s."""

    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--steps", type=int, default=3)

    module = SimpleNamespace(add_arguments=add_arguments, run=lambda args: {"steps": args.steps})
    monkeypatch.setattr(cli.importlib, "import_module", lambda name: module)
    return module


def test_help_names_every_command_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from wvl_ros.cli import main\n"
        "try:\n    main(['--help'])\n"
        "finally:\n    print('HEAVY', [m for m in ('torch', 'mujoco', 'rclpy', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "HEAVY []" in done.stdout
    for command in cli.COMMANDS:
        assert command.words[0] in done.stdout


@pytest.mark.parametrize("command", cli.COMMANDS, ids=lambda command: " ".join(command.words))
def test_every_command_explains_itself(command: cli.Command) -> None:
    done = wvl(*command.words, "--help")
    assert done.returncode == 0, done.stderr
    assert "--json" in done.stdout
    assert command.description.split()[0] in done.stdout


def test_the_graph_explains_its_arguments() -> None:
    text = wvl("up", "imagine", "--help").stdout
    assert "task:=pick_place" in text
    assert "One of: pick_place, push, stack, sweep." in text


@pytest.mark.parametrize("words", [["fly"], ["up"], ["up", "moon"], [], ["render", "--stepz"]])
def test_an_unknown_command_or_option_is_a_usage_error(words: list[str]) -> None:
    done = wvl(*words)
    assert done.returncode == 2
    assert "usage: wvl" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_result_is_one_json_object(module: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["render", "--json", "--steps", "7"]) == 0
    assert json.loads(capsys.readouterr().out) == {"steps": 7}


def test_a_result_is_shown_in_the_command_s_own_way(module: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["render"]) == 0
    assert capsys.readouterr().out == "steps: 3\n"
    module.show = lambda result: print(f"{result['steps']} steps made")
    assert cli.main(["render"]) == 0
    assert capsys.readouterr().out == "3 steps made\n"


def test_an_error_is_one_sentence_and_exit_code_2(module: Any, capsys: pytest.CaptureFixture[str]) -> None:
    def run(args: argparse.Namespace) -> dict[str, Any]:
        raise ConfigError("The flux is 3; give at most 2.")

    module.run = run
    assert cli.main(["render", "--json"]) == 2
    out, err = capsys.readouterr()
    assert err == "wvl: The flux is 3; give at most 2.\n"
    assert json.loads(out) == {"error": "The flux is 3; give at most 2."}


def test_interrupting_leaves_no_traceback(module: Any, capsys: pytest.CaptureFixture[str]) -> None:
    def run(args: argparse.Namespace) -> dict[str, Any]:
        raise KeyboardInterrupt

    module.run = run
    assert cli.main(["render"]) == 130
    assert capsys.readouterr().err == "wvl: interrupted.\n"


def test_a_full_disk_is_one_sentence_and_leaves_no_part_of_a_file(small_disk: Path) -> None:
    out = small_disk / "data"
    done = wvl("collect", "--task", "push", "--episodes", "1", "--seed", "1", "--out", str(out), "--json")
    assert done.returncode == 2
    assert "wvl: The disk is full: make room" in done.stderr
    assert "Traceback" not in done.stderr
    assert "disk is full" in json.loads(done.stdout)["error"]
    assert list(out.iterdir()) == []


def test_other_failures_are_not_taken_for_a_full_disk(module: Any) -> None:
    def run(args: argparse.Namespace) -> dict[str, Any]:
        raise OSError(5, "Input/output error")

    module.run = run
    with pytest.raises(OSError, match="Input/output"):
        cli.main(["render"])


def test_a_command_may_choose_its_exit_code(module: Any) -> None:
    module.run = lambda args: {"exit_code": 1}
    assert cli.main(["render"]) == 1
