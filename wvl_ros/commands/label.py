"""`wvl label`: who watches an episode says whether it succeeded; or a reward model does."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wvl_ros.errors import ConfigError

if TYPE_CHECKING:
    from wvl_ros.sans.episode import Episode
    from wvl_ros.sans.labels import Labelled

KEYS = {"s": "success", "n": "near_success", "f": "failure"}
MODELS = ("reward_model", "vlm")
HELP = "[s]uccess  [n]ear-success  [f]ailure  [space] skip  [u]ndo  [q]uit"
EPILOG = """On a terminal, each episode is shown as a contact sheet and a key labels it:
  s success, n near-success, f failure, space skips, u goes back to the one before, q ends.
A near-success has failed, but got hold of the object or came within twice the task's tolerance of the goal."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.epilog = EPILOG
    parser.add_argument("path", type=Path, help="a SANS dataset, or a bag or its recording's folder")
    parser.add_argument("--episode", default="", help="index or id of one episode of the dataset")
    parser.add_argument("--all", action="store_true", help="also the episodes that somebody has judged already")
    parser.add_argument("--outcome", choices=list(KEYS.values()), help="label without asking")
    parser.add_argument(
        "--by", choices=("operator", *MODELS), default="operator", help="who judges (default: operator)"
    )
    parser.add_argument(
        "--checkpoint",
        default="",
        help="reward_model: a world model, whose reward head judges (default: small); vlm: folder of a Qwen-VL model",
    )
    parser.add_argument("--open", action="store_true", help="open each contact sheet in a viewer as well")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Labels; counts the outcomes.

    Raises:
        ConfigError: there is no terminal to ask on, and no --outcome.
        WvlError: nothing to label there, or it is damaged.
    """
    from wvl_ros.sans.labels import find_labelled

    if args.by in MODELS and args.outcome:
        raise ConfigError(f"A model finds the outcome itself: leave out --outcome, or --by {args.by}.")
    found = find_labelled(args.path.expanduser(), args.episode, everything=args.all)
    if args.by in MODELS:
        told = _judge(found, _model(args.by, args.checkpoint))
    elif args.outcome:
        for each in found:
            each.label(args.outcome, "operator")
        told = {each.name: args.outcome for each in found}
    elif not found:
        told = {}
    elif not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise ConfigError("There is no terminal to ask on: give --outcome, or --by reward_model.")
    else:
        from wvl_ros.sans.terminal import pressed_keys

        with pressed_keys() as keys:
            told = ask(found, keys, open_viewer=args.open)
    return {
        "path": str(args.path),
        "by": args.by,
        "episodes": len(found),
        "labelled": told,
        "outcomes": dict(sorted(Counter(told.values()).items())),
    }


def show(result: dict[str, Any]) -> None:
    """Prints what was labelled."""
    if not result["episodes"]:
        print("Somebody has judged every episode already; --all shows them again.")
        return
    counts = ", ".join(f"{count} {outcome}" for outcome, count in result["outcomes"].items()) or "none"
    print(f"{len(result['labelled'])} of {result['episodes']} episodes labelled: {counts}.")


def ask(episodes: Sequence[Labelled], keys: Iterator[str], *, open_viewer: bool = False) -> dict[str, str]:
    """Shows one episode after another and labels each by a key.

    A label is written when the next key is pressed, so that undoing it leaves the episode's rewards as they were.

    Returns:
        The outcome of each episode that was labelled, by name.
    """
    told: dict[str, str] = {}
    pending: tuple[Labelled, str] | None = None
    folder = Path(tempfile.mkdtemp(prefix="wvl_label_"))
    position, shown = 0, -1
    try:
        while True:
            if position == len(episodes):
                _say("That was the last one: [u]ndo, or any other key to end")
            elif shown != position:
                _present(episodes, position, folder, open_viewer)
            shown = position
            key = next(keys, "q").lower()
            if key == "u":
                if pending is not None:
                    told.pop(pending[0].name, None)
                    pending = None
                position = max(0, position - 1)
                continue
            if position == len(episodes):
                break
            if key not in (*KEYS, " ", "q"):
                continue
            if pending is not None:
                pending[0].label(pending[1], "operator")
                pending = None
            if key == "q":
                break
            if key in KEYS:
                pending = (episodes[position], KEYS[key])
                told[episodes[position].name] = KEYS[key]
                _say(f"  {KEYS[key]}")
            position += 1
    finally:
        if pending is not None:
            pending[0].label(pending[1], "operator")
    return told


def _present(episodes: Sequence[Labelled], position: int, folder: Path, open_viewer: bool) -> None:
    from wvl_ros.sans.render import contact_sheet
    from wvl_ros.sans.terminal import draw

    labelled = episodes[position]
    episode = labelled.episode()
    sheet = contact_sheet(episode)
    path = folder / f"{episode.episode_id or position}.png"
    sheet.save(path)
    size = shutil.get_terminal_size((100, 40))
    now = f", now {labelled.outcome} by {labelled.outcome_source or 'nobody'}" if labelled.outcome else ""
    _say(draw(sheet, size.columns - 1, max(6, size.lines - 5)))
    _say(f"{position + 1}/{len(episodes)}  {labelled.name}: {episode.instruction}{now}\n{path}\n{HELP}")
    if open_viewer:
        viewer = shutil.which("xdg-open") or shutil.which("open")
        if viewer is None:
            raise ConfigError(f"There is no viewer (xdg-open) on this machine; leave out --open and look at {path}.")
        subprocess.Popen([viewer, str(path)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _model(name: str, checkpoint: str) -> Callable[[Episode], str]:
    """Who says the outcome of an episode; '' for no answer."""
    if name == "reward_model":
        from wvl_ros.sans.labels import JudgeConfig, RewardModel

        model = RewardModel(JudgeConfig(checkpoint or "small"))
        return lambda episode: model.judge(episode).outcome
    from wvl_ros.rewards.vlm.judge import VlmJudge

    if not checkpoint:
        raise ConfigError("--by vlm needs --checkpoint: the folder of a Qwen2.5-VL or Qwen3-VL model.")
    judge = VlmJudge.from_pretrained(checkpoint)

    def outcome(episode: Episode) -> str:
        answers = judge.answers([episode])
        return "" if answers.silent[0] else "success" if answers.yes[0] > judge.threshold else "failure"

    return outcome


def _judge(episodes: Sequence[Labelled], ask: Callable[[Episode], str]) -> dict[str, str]:
    from tqdm import tqdm

    told = {}
    for each in tqdm(episodes, desc="judging", unit="episode", disable=None):
        outcome = ask(each.episode())
        if outcome:
            told[each.name] = outcome
            each.label(outcome, "reward_model")
    return told


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
