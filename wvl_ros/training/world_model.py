"""`wvl train world-model`: fits the world model to a folder of episodes; may be killed and goes on where it was."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from wvl_ros.checkpoints import find
from wvl_ros.errors import ConfigError
from wvl_ros.training.processes import let_one_speak
from wvl_ros.training.world_model_run import Sources, fine_tuning, train
from wvl_ros.training.world_model_settings import Budget, WorldModelTraining
from wvl_ros.world_model.loading import load_world_model

MINUTES, FINE_TUNE_MINUTES = 60.0, 10.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `wvl train world-model`."""
    parser.add_argument("--data", type=Path, required=True, help="SANS dataset or folder of episode files")
    parser.add_argument("--validation", type=Path, default=None, help="held-out episodes, likewise")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of the checkpoint; a run that was stopped there goes on"
    )
    parser.add_argument("--config", type=Path, default=None, help="YAML file (default: the small model)")
    parser.add_argument(
        "--from", dest="start", default=None, metavar="CHECKPOINT", help="fine-tune it: a shipped name or a folder"
    )
    parser.add_argument("--replay", type=Path, default=None, metavar="DATA", help="old episodes, so as not to forget")
    parser.add_argument(
        "--motions",
        type=Path,
        default=None,
        metavar="DATA",
        help="more episodes that say where things were; their pictures are not looked at (wvl collect --size 16 "
        "--stride 1000): they teach a fresh model how things move",
    )
    parser.add_argument(
        "--replay-share", type=float, default=None, help="share of them in a batch (default: 0.5, or as in --config)"
    )
    parser.add_argument(
        "--lora", type=int, default=None, metavar="RANK", help="train an adapter of this rank instead of the weights"
    )
    parser.add_argument(
        "--patience", type=int, default=None, metavar="N", help="stop after N validations without a gain"
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=None,
        help=f"training time (default: {MINUTES:g}, with --from {FINE_TUNE_MINUTES:g}, none when --steps is given)",
    )
    parser.add_argument("--steps", type=int, default=None, help="updates")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads (default: torch's choice)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Trains; returns what `show` prints."""
    if args.threads:
        torch.set_num_threads(args.threads)
    let_one_speak()
    settings = WorldModelTraining.load(args.config)
    given = {"replay_share": args.replay_share, "patience": args.patience, "lora_rank": args.lora}
    settings = replace(settings, **{name: value for name, value in given.items() if value is not None})
    start = None
    if args.start is not None:
        start = load_world_model(find("world_model", args.start))
        settings = fine_tuning(settings, start)
    elif settings.lora_rank:
        raise ConfigError("--lora trains an adapter for a checkpoint: say which one with --from.")
    elif settings.model.get("size", "small") != "small":
        raise ConfigError(
            f"The model of size '{settings.model['size']}' begins with published weights: get them with `wvl import "
            "world-model`, then give that folder with --from."
        )
    if args.motions is not None and start is not None:
        raise ConfigError("--motions teaches a fresh model how things move: leave it out, or leave --from out.")
    default = None if args.steps is not None else FINE_TUNE_MINUTES if start is not None else MINUTES
    budget = Budget(args.steps, args.minutes if args.minutes is not None else default)
    sources = Sources(args.data, args.validation, args.replay, start, settings.lora_rank, args.motions)
    return train(settings, sources, args.out, budget)


def show(result: dict[str, Any]) -> None:
    """Prints the run's end for people."""
    if result.get("stopped"):
        print(f"Stopped after update {result['step']} and its checkpoint; the same command goes on from there.")
        return
    print(f"{result['step']} updates in {result['seconds'] / 60:.1f} minutes; the checkpoint is {result['out']}")
    if "validation" in result:
        figures, kept = result["validation"], result["kept"]
        outcome, images = figures["outcome"], figures["images"]
        print(f"kept: update {kept['step']}")
        print(f"own rollouts: PSNR {images['psnr']} dB, SSIM {images['ssim']}, outcome accuracy {outcome['accuracy']}")
        print(f"blind baseline: accuracy {outcome['blind']['accuracy']}")
