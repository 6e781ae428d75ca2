"""The command line `wvl`: a table of commands whose modules are imported only when they are called."""

from __future__ import annotations

import argparse
import errno
import importlib
import json
import logging
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from wvl_ros import __version__
from wvl_ros.errors import WvlError

DESCRIPTION = "Closed-loop co-improvement of a video world model and a vision-language-action policy on a Franka arm."


@dataclass(frozen=True)
class Command:
    """One command: its words, the module with `add_arguments`, `run` and perhaps `show`, and what it does."""

    words: tuple[str, ...]
    module: str
    description: str


COMMANDS = (
    Command(("up", "imagine"), "wvl_ros.commands.up", "Run the policy in the world model, beside a reference."),
    Command(("up", "real_robot"), "wvl_ros.commands.up", "Run the policy on the robot or on its stand-in."),
    Command(("collect",), "wvl_ros.commands.collect", "Collect episodes on the tabletop with scripted experts."),
    Command(("convert",), "wvl_ros.commands.convert", "Add bags, DROID or LeRobot episodes to a SANS dataset."),
    Command(("label",), "wvl_ros.commands.label", "Say of episodes whether they succeeded, nearly did, or failed."),
    Command(("inspect",), "wvl_ros.commands.inspect", "Summarise a dataset or an episode, with a contact sheet."),
    Command(("verify",), "wvl_ros.commands.verify", "Check every file of a SANS dataset."),
    Command(("export",), "wvl_ros.commands.export", "Turn SANS into what openpi trains from, or back into a bag."),
    Command(("bag", "repair"), "wvl_ros.commands.bag", "Make a bag readable whose recorder was killed."),
    Command(("import", "world-model"), "wvl_ros.commands.import_weights", "Take over published world-model weights."),
    Command(("render",), "wvl_ros.commands.render", "Make a video and a contact sheet of an episode."),
    Command(("train", "world-model"), "wvl_ros.training.world_model", "Fit the world model to a folder of episodes."),
    Command(("train", "policy"), "wvl_ros.training.policy", "Train the policy."),
    Command(("train", "visual-judge"), "wvl_ros.training.visual_judge", "Fit the judge of imagined videos."),
    Command(("train", "judge"), "wvl_ros.training.judge", "Fine-tune the vision-language judge of success."),
    Command(("evaluate", "world-model"), "wvl_ros.evaluation.world_model", "Measure the world model's own rollouts."),
    Command(("evaluate", "policy"), "wvl_ros.evaluation.policy", "Measure a policy's success on the tabletop."),
    Command(("evaluate", "judge"), "wvl_ros.evaluation.judge", "Measure who says success against what is known."),
)
GROUPS = {
    "bag": "Mend bags.",
    "import": "Take over weights that others published.",
    "up": "Start a graph of nodes.",
    "train": "Train a model.",
    "evaluate": "Measure a model.",
}


def build_parser(words: Sequence[str]) -> tuple[argparse.ArgumentParser, ModuleType | None]:
    """The parser for a command line that starts with `words`, and the module of the command they name.

    Only that module is imported, so `wvl --help` is quick.
    """
    parser = argparse.ArgumentParser("wvl", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"wvl_ros {__version__}")
    top = parser.add_subparsers(metavar="COMMAND", required=True)
    groups: dict[str, Any] = {}
    module = None
    for command in COMMANDS:
        level = top
        if len(command.words) > 1:
            group = command.words[0]
            if group not in groups:
                sub = top.add_parser(group, help=GROUPS[group], description=GROUPS[group], allow_abbrev=False)
                groups[group] = sub.add_subparsers(metavar="COMMAND", required=True)
            level = groups[group]
        leaf = level.add_parser(
            command.words[-1],
            help=command.description,
            description=command.description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        leaf.add_argument("--json", action="store_true", help="print the result as one JSON object on stdout")
        leaf.set_defaults(command=command.words)
        if tuple(words[: len(command.words)]) == command.words:
            module = importlib.import_module(command.module)
            module.add_arguments(leaf)
    return parser, module


def show(result: dict[str, Any]) -> None:
    """A result for people, for commands that have no own way."""
    for name, value in result.items():
        print(f"{name}: {value}")


def _is_disk_full(error: BaseException) -> bool:
    """Whether it tells of no space left; safetensors says so in words alone."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or f"(os error {errno.ENOSPC})" in str(error)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
        0; 2 after a wrong argument or any error a user can mend; 130 after Ctrl-C; else the result's own `exit_code`.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    as_json = "--json" in words
    try:
        parser, module = build_parser(words)
        args = parser.parse_args(words)
        if module is None:
            parser.error(f"write the command's words first: wvl {' '.join(args.command)} ...")
        result: dict[str, Any] = module.run(args)
        code = int(result.get("exit_code", 0))
        if as_json:
            print(json.dumps(result), flush=True)
        else:
            getattr(module, "show", show)(result)
            sys.stdout.flush()
        return code
    except WvlError as error:
        print(f"wvl: {error}", file=sys.stderr)
        if as_json:
            print(json.dumps({"error": str(error)}))
        return 2
    except BrokenPipeError:  # `wvl ... | head`
        sys.stderr.close()
        return 128 + signal.SIGPIPE
    except Exception as error:
        if not _is_disk_full(error):
            raise
        said = "The disk is full: make room and give the same command again; what was written before is whole."
        print(f"wvl: {said}", file=sys.stderr)
        if as_json:
            print(json.dumps({"error": said}))
        return 2
    except KeyboardInterrupt:
        print("wvl: interrupted.", file=sys.stderr)
        return 128 + signal.SIGINT


if __name__ == "__main__":
    raise SystemExit(main())
