"""`wvl train judge`: fine-tunes a vision-language judge on labelled episodes; killed, it goes on where it was."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from wvl_ros.errors import ConfigError
from wvl_ros.rewards.quality import Quality
from wvl_ros.rewards.truth import is_true
from wvl_ros.rewards.vlm.judge import VlmJudge
from wvl_ros.rewards.vlm.model import DTYPES
from wvl_ros.sans.episodes import EpisodeEntry, list_episodes
from wvl_ros.training.judge_trainer import JudgeTrainer, JudgeTraining
from wvl_ros.training.processes import Processes
from wvl_ros.worlds.droid import CAMERAS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `wvl train judge`."""
    default = JudgeTraining()
    parser.add_argument(
        "--data", type=Path, nargs="+", required=True, help="SANS datasets or folders of episode files, labelled"
    )
    parser.add_argument(
        "--from", dest="start", type=Path, required=True, metavar="FOLDER", help="a Qwen2.5-VL or Qwen3-VL model"
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of the new judge; a stopped training goes on there"
    )
    parser.add_argument("--validation", type=Path, nargs="+", default=[], help="held-out episodes, labelled")
    parser.add_argument("--steps", type=int, default=default.steps, help="updates (default: %(default)s)")
    parser.add_argument(
        "--lora", type=int, default=default.lora, metavar="RANK", help="of the adapter; 0 trains all weights"
    )
    parser.add_argument("--batch", type=int, default=default.batch, help="episodes an update (default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, help="peak (default: 2e-4 with LoRA, 1e-5 without)")
    parser.add_argument("--seed", type=int, default=default.seed, help="of adapter and batches")
    parser.add_argument(
        "--camera",
        nargs="+",
        choices=CAMERAS,
        help="what it sees, side by side (default: as in the model's judge.json)",
    )
    parser.add_argument("--device", default="auto", help="'auto', 'cpu' or 'cuda'")
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="of the weights that are not trained")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Trains; returns the folder, the losses and the quality before and after."""
    settings = JudgeTraining(args.steps, args.batch, args.lora, args.learning_rate, seed=args.seed)
    if args.threads:
        torch.set_num_threads(args.threads)
    if int(os.environ.get("RANK", "0")):
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (of several processes one tells the result)
    if args.out.resolve() == args.start.resolve():
        raise ConfigError(f"--out must be another folder than --from, but both are '{args.out}'.")
    entries = _entries(args.data)
    held = [entry for entry in _entries(args.validation) if is_true(entry)]
    if args.validation and not held:
        raise ConfigError("None of the --validation episodes has a known outcome; label them with `wvl label`.")
    _require_apart(entries, held)
    processes = Processes.join()
    try:
        changes = {} if args.camera is None else {"cameras": args.camera}
        judge = VlmJudge.from_pretrained(args.start, device=args.device, dtype=args.dtype, **changes)
        trainer = JudgeTrainer(judge, entries, settings, args.out, processes)
        after, before = trainer.fit(held)
    finally:
        processes.leave()
    return {
        "checkpoint": str(args.out),
        "steps": trainer.step,
        "minutes": round(trainer.seconds / 60, 2),
        "episodes": len(trainer.entries),
        "left_out": len(entries) - len(trainer.entries),
        "losses": dict(trainer.losses),
        "before": before,
        "after": None if after is None else after.to_dict(),
    }


def show(result: dict[str, Any]) -> None:
    """Prints the result for people."""
    left_out = f" ({result['left_out']} without a known outcome left out)" if result["left_out"] else ""
    losses = ", ".join(f"{name} {value:.3f}" for name, value in result["losses"].items())
    print(f"Trained {result['steps']} updates in {result['minutes']} min on {result['episodes']} episodes{left_out}.")
    print(f"In the last updates: {losses}")
    for when in ("before", "after"):
        if result[when] is not None:
            print(f"{when.capitalize()}: {Quality.from_dict(result[when]).sentence}")
    if result["after"] is None:
        print("How good it is nobody knows: give held-out episodes with --validation, or run `wvl evaluate judge`.")
    print(f"The judge is in {result['checkpoint']}")


def _entries(paths: Sequence[Path]) -> list[EpisodeEntry]:
    return [entry for path in paths for entry in list_episodes(path)]


def _require_apart(entries: Sequence[EpisodeEntry], held: Sequence[EpisodeEntry]) -> None:
    both = {entry.episode_id for entry in entries} & {entry.episode_id for entry in held} - {""}
    if both:
        raise ConfigError(
            f"{len(both)} of the --validation episodes are in --data as well ('{min(both)}'); a judge is measured on "
            "episodes it has not seen."
        )
