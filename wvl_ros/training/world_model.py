"""`wvl train world-model`: fits the world model to a folder of episodes; may be killed and goes on where it was."""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from wvl_ros.errors import ConfigError
from wvl_ros.evaluation.blind import BlindBaseline, fit_blind
from wvl_ros.evaluation.imagined import write_sheet
from wvl_ros.evaluation.outcome import choose_threshold
from wvl_ros.evaluation.world_model import evaluate, load_blind, save_blind_file
from wvl_ros.training.frame_cache import FrameCache, open_cache
from wvl_ros.training.world_model_settings import Budget, WorldModelTraining
from wvl_ros.training.world_model_trainer import Trainer


def train(
    settings: WorldModelTraining, data: Path, out: Path, budget: Budget, validation: Path | None = None
) -> dict[str, Any]:
    """Trains until the budget ends, from the state in `out` when there is one; the checkpoint is `out` itself.

    Returns:
        Updates, training seconds, losses and the last validation's figures.
    """
    out.mkdir(parents=True, exist_ok=True)
    arguments: dict[str, Any] = {
        "size": int(settings.model.get("image_size", 64)),
        "patch": int(settings.model.get("patch", 4)),
        "actions_per_frame": int(settings.model.get("actions_per_frame", 3)),
        "rig": str(settings.model.get("rig", "")),
    }
    cache = open_cache(data, **arguments)
    held = open_cache(validation, **arguments) if validation else None
    trainer = Trainer(settings, cache, out)
    trainer.prepare()
    blind = _blind(trainer, out) if held is not None else None
    figures: dict[str, Any] = {}
    saved = validated = trainer.seconds
    bar = tqdm(desc="training", unit="update", initial=trainer.step, total=budget.steps, disable=None)
    trainer.model.train()
    while (done := budget.done(trainer.step, trainer.seconds)) < 1:
        before = time.perf_counter()
        trainer.update(done)
        trainer.seconds += time.perf_counter() - before
        bar.update()
        if trainer.step % 50 == 0:
            bar.set_postfix({"done": f"{100 * done:.0f} %", **{k: f"{v:.4f}" for k, v in trainer.losses.items()}})
            trainer.log("train", {name: round(value, 5) for name, value in trainer.losses.items()})
        if not math.isfinite(trainer.losses["image"]):
            raise ConfigError(
                f"Training diverged at update {trainer.step}; lower learning_rate and start in another folder."
            )
        if trainer.seconds - saved > settings.checkpoint_seconds:
            trainer.checkpoint()
            saved = trainer.seconds
        if held is not None and trainer.seconds - validated > settings.validate_seconds:
            figures = validate(trainer, held, blind)
            validated = trainer.seconds
    bar.close()
    if held is not None:
        figures = validate(trainer, held, blind, last=True)
    trainer.checkpoint()
    return {"out": str(out), "step": trainer.step, "seconds": round(trainer.seconds, 1), "losses": trainer.losses} | (
        {"validation": figures} if figures else {}
    )


def validate(trainer: Trainer, held: FrameCache, blind: BlindBaseline | None, last: bool = False) -> dict[str, Any]:
    """Own rollouts of validation episodes, logged and drawn; the last validation also chooses the success threshold."""
    count = min(len(held), trainer.settings.validation_episodes * (3 if last else 1))
    episodes = np.linspace(0, len(held) - 1, count).round().astype(int)
    figures, imagined = evaluate(trainer.average, held, episodes, blind=blind)
    if last:
        chances = [own.success_probability for own in imagined]
        threshold, frames = choose_threshold(chances, [held.outcomes[i] for i in episodes])
        for model in (trainer.model, trainer.average):
            model.register_to_config(success_threshold=threshold, success_frames=frames)
        figures["chosen"] = {"success_threshold": threshold, "success_frames": frames}
    trainer.log("validation", figures)
    picked = np.linspace(0, count - 1, min(6, count)).round().astype(int)
    sheet = trainer.out / f"validation_{trainer.step:06d}.png"
    write_sheet(sheet, held, episodes[picked], [imagined[i] for i in picked], int(trainer.average.config["patch"]))
    return figures


def _blind(trainer: Trainer, out: Path) -> BlindBaseline:
    blind = load_blind(out, trainer.model)
    if blind is None:
        blind = fit_blind(trainer.cache, list(trainer.model.config["vocabulary"]))
        save_blind_file(out, blind)
    return blind


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `wvl train world-model`."""
    parser.add_argument("--data", type=Path, required=True, help="SANS dataset or folder of episode files")
    parser.add_argument("--validation", type=Path, default=None, help="held-out episodes, likewise")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of the checkpoint; a run that was stopped there goes on"
    )
    parser.add_argument("--config", type=Path, default=None, help="YAML file (default: the small model)")
    parser.add_argument(
        "--minutes", type=float, default=None, help="training time (default: 60, unless --steps is given)"
    )
    parser.add_argument("--steps", type=int, default=None, help="updates")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads (default: torch's choice)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Trains; returns what `show` prints."""
    if args.threads:
        torch.set_num_threads(args.threads)
    minutes = args.minutes if args.minutes is not None or args.steps is not None else 60.0
    settings = WorldModelTraining.load(args.config)
    return train(settings, args.data, args.out, Budget(args.steps, minutes), args.validation)


def show(result: dict[str, Any]) -> None:
    """Prints the run's end for people."""
    print(f"{result['step']} updates in {result['seconds'] / 60:.1f} minutes; the checkpoint is {result['out']}")
    if "validation" in result:
        figures = result["validation"]
        outcome = figures["outcome"]
        images, accuracy = figures["images"], outcome["accuracy"]
        print(f"own rollouts: PSNR {images['psnr']} dB, SSIM {images['ssim']}, outcome accuracy {accuracy}")
        print(f"blind baseline: accuracy {outcome['blind']['accuracy']}")
