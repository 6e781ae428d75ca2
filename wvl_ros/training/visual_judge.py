"""`wvl train visual-judge`: fits the judge of videos to true frames and puts it beside a world model's checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from wvl_ros.checkpoints import find
from wvl_ros.errors import ConfigError
from wvl_ros.evaluation.visual_judge import FILE, fit_judge, save_judge
from wvl_ros.training.frame_cache import open_cache
from wvl_ros.training.mirror import is_symmetric, with_mirror_images
from wvl_ros.training.misnaming import Misnaming, add_opposites
from wvl_ros.world_model.loading import read_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `wvl train visual-judge`."""
    parser.add_argument("checkpoint", help="world model to put it beside: a shipped name or a folder")
    parser.add_argument("--data", type=Path, required=True, help="SANS dataset or folder of episode files")
    parser.add_argument(
        "--steps",
        type=int,
        default=1800,
        help="updates of each of its two networks (default: %(default)s, about 15 minutes on a core)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of weights and batches")
    add_opposites(parser)
    parser.add_argument("--threads", type=int, default=None, help="CPU threads (default: torch's choice)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Trains and writes it; `wvl evaluate world-model` then prints the visual alignment."""
    if args.steps < 1:
        raise ConfigError(f"--steps must be at least 1, but is {args.steps}.")
    if args.threads:
        torch.set_num_threads(args.threads)
    folder = find("world_model", args.checkpoint)
    config = read_config(folder)
    cache = open_cache(
        args.data, size=config["image_size"], patch=config["patch"],
        actions_per_frame=config["actions_per_frame"], rig=config["rig"],
    )  # fmt: skip
    if is_symmetric(config["cameras"]):
        cache = with_mirror_images(cache, int(config["patch"]))
    judge = fit_judge(
        cache, list(config["vocabulary"]), int(config["patch"]),
        steps=args.steps, seed=args.seed, misnaming=Misnaming(args.opposites),
    )  # fmt: skip
    save_judge(folder, judge)
    return {"file": str(folder / FILE), "episodes": len(cache), "steps": args.steps}
