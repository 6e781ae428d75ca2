"""`wvl evaluate world-model`: how true the world model's own rollouts of recorded episodes are."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from wvl_ros.checkpoints import find
from wvl_ros.errors import ConfigError
from wvl_ros.evaluation.arm import arm_measures
from wvl_ros.evaluation.blind import BlindBaseline, blind_scores, load_blind
from wvl_ros.evaluation.calibration import calibration
from wvl_ros.evaluation.closings import closing_measures
from wvl_ros.evaluation.images import image_measures, write_drift
from wvl_ros.evaluation.imagined import ImaginedEpisode, imagine_episodes, write_sheet
from wvl_ros.evaluation.listening import listening_measures
from wvl_ros.evaluation.outcome import KINDS, best_run, judged, outcome_measures
from wvl_ros.evaluation.perceptual import perceptual_measures
from wvl_ros.evaluation.policy import EVALUATION_SEED
from wvl_ros.evaluation.report import headline, show
from wvl_ros.evaluation.review import agreement, write_review
from wvl_ros.evaluation.visual_judge import VisualJudge, judge_videos, load_judge
from wvl_ros.training.frame_cache import FrameCache, open_cache
from wvl_ros.training.misnaming import Misnaming, add_opposites
from wvl_ros.world_model import patches
from wvl_ros.world_model.loading import load_small_world_model
from wvl_ros.world_model.model import WorldModel

__all__ = ["add_arguments", "evaluate", "run", "show"]
PAIRS = 4  # of a task


def evaluate(
    model: WorldModel,
    cache: FrameCache,
    episodes: NDArray[np.int64],
    *,
    blind: BlindBaseline | None = None,
    judge: VisualJudge | None = None,
    steps: int = 1,
    seed: int = 0,
    progress: bool = False,
) -> tuple[dict[str, Any], list[ImaginedEpisode]]:
    """All measures of some episodes of a cache, and the rollouts they were taken from."""
    imagined = imagine_episodes(model, cache, episodes, steps=steps, seed=seed, progress=progress)
    guesses = blind_scores(blind, cache, episodes) if blind is not None else None
    limits = float(model.config["success_threshold"]), int(model.config["success_frames"])
    chances = [own.success_probability for own in imagined]

    def outcomes(pick: Callable[[int], bool]) -> dict[str, Any]:
        rows = [row for row, episode in enumerate(episodes.tolist()) if pick(episode)]
        return outcome_measures(
            [chances[r] for r in rows],
            [cache.outcomes[int(episodes[r])] for r in rows],
            *limits,
            None if guesses is None else guesses[rows],
        )

    result: dict[str, Any] = {
        "episodes": len(episodes),
        "images": image_measures(cache, episodes, imagined, model),
        "arm": arm_measures(cache, episodes, imagined, model),
        "closings": closing_measures(cache, episodes, imagined),
        "outcome": outcomes(lambda _: True),
        "outcome_by_task": {
            task: outcomes(lambda e, task=task: cache.tasks[e] == task)  # type: ignore[misc]
            for task in sorted({cache.tasks[e] for e in episodes.tolist()})
        },
        "calibration": reward_calibration(cache, episodes, imagined, limits[1]),
    }
    if judge is not None:
        result["visual"] = visual_measures(judge, cache, episodes, [own.frames for own in imagined], model)
    return result, imagined


def reward_calibration(
    cache: FrameCache, episodes: NDArray[np.int64], imagined: list[ImaginedEpisode], run: int
) -> dict[str, Any]:
    """Calibration of the reward head on its own rollouts: of every frame, and of each episode's highest `run`."""
    chances, rewards = [np.empty(0)], [np.empty(0, bool)]
    for episode, own in zip(episodes.tolist(), imagined, strict=True):
        index = torch.arange(1, len(own.frames) + 1)
        chances.append(own.success_probability)
        rewards.append((cache.rewards[cache.step(torch.full_like(index, episode), index)] > 0.5).numpy())
    told = [row for row, episode in enumerate(episodes.tolist()) if cache.outcomes[episode] in KINDS]
    peaks = np.array([best_run(imagined[row].success_probability, run) for row in told])
    truth = np.array([cache.outcomes[int(episodes[row])] == "success" for row in told], dtype=bool)
    return {
        "frames": calibration(np.concatenate(chances), np.concatenate(rewards)),
        "episodes": calibration(peaks, truth),
    }


def visual_measures(
    judge: VisualJudge,
    cache: FrameCache,
    episodes: NDArray[np.int64],
    videos: list[NDArray[np.uint8]],
    model: WorldModel,
) -> dict[str, Any]:
    """How often the imagined videos end as the true ones did, by a judge, beside how often it is right on true ones."""
    patch = int(model.config["patch"])
    kinds = np.array([cache.outcomes[e] for e in episodes.tolist()])
    truth, told = kinds == "success", np.isin(kinds, KINDS)
    result = {}
    for name, own in (("imagined", videos), ("true", None)):
        scores = judge_videos(judge, cache, episodes, patch, own)
        result[name] = judged(scores > 0.5, scores, truth, kinds, told)
        result[name]["scores"] = np.round(scores, 4).tolist()
    return result


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `wvl evaluate world-model`."""
    parser.add_argument("checkpoint", nargs="?", default="small", help="a shipped name or a folder (default: small)")
    parser.add_argument(
        "--seed",
        type=int,
        default=EVALUATION_SEED,
        help="tabletop seed of the first episode; the others follow (default: %(default)s)",
    )
    parser.add_argument(
        "--episodes", type=int, help="how many: successes and near-successes in equal parts (default: 200)"
    )
    parser.add_argument("--task", nargs="+", help="tasks (default: all four)")
    parser.add_argument("--policy", default="small", help="checkpoint that plays half of them (default: small)")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep these episodes here, for the next time")
    parser.add_argument(
        "--data", type=Path, help="dataset or folder of held-out episodes instead; --episodes takes some of them"
    )
    parser.add_argument("--steps", type=int, default=1, help="denoising steps a frame (default: 1)")
    parser.add_argument("--noise-seed", type=int, default=0, help="seed of the imagined noise")
    parser.add_argument("--sheet", type=Path, default=None, help="write a PNG: true frames above, imagined below")
    parser.add_argument(
        "--pairs",
        type=int,
        default=None,
        help=f"pairs of episodes a task for the action following (default: {PAIRS}, with --data 0)",
    )
    parser.add_argument(
        "--curves", type=Path, default=None, help="write a PNG: PSNR and SSIM over the seconds imagined"
    )
    parser.add_argument("--review", type=Path, metavar="FOLDER", help="write 50 pictures and a table to judge yourself")
    parser.add_argument(
        "--reviewed", type=Path, metavar="CSV", help="that table, filled in: how often you and the judge agree"
    )
    add_opposites(parser)
    parser.add_argument("--lpips-weights", type=Path, metavar="FILE", help="network of LPIPS; without it not computed")
    parser.add_argument("--fvd-weights", type=Path, metavar="FILE", help="network of FVD; without it not computed")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads (default: torch's choice)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that make the episodes")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Evaluates a checkpoint; returns what `show` prints."""
    if args.episodes is not None and args.episodes < 1:
        raise ConfigError(f"--episodes must be at least 1, but is {args.episodes}.")
    if args.threads:
        torch.set_num_threads(args.threads)
    from wvl_ros.evaluation.following import collect_pairs, following_measures  # with MuJoCo: not for --help
    from wvl_ros.evaluation.held_out import collect_held_out

    reviewed = agreement(args.reviewed) if args.reviewed else None
    for path in (args.lpips_weights, args.fvd_weights):
        if path is not None and not path.is_file():
            raise ConfigError(f"There is no file '{path}'; wvl_ros/evaluation/perceptual.py says which ones fit.")
    folder = find("world_model", args.checkpoint)
    model = load_small_world_model(folder, "`wvl evaluate world-model`")
    pairs = args.pairs if args.pairs is not None else 0 if args.data else PAIRS
    tasks = {"tasks": args.task} if args.task else {}
    with tempfile.TemporaryDirectory() as scratch:
        if args.data:
            result = _measure(folder, model, args.data, args.episodes, args)
        else:
            place = args.keep or Path(scratch) / "episodes"
            policy, count = find("policy", args.policy), args.episodes or 200
            collect_held_out(place, args.seed, count, policy, workers=args.workers, **tasks)
            result = _measure(folder, model, place, None, args)
        if pairs:
            collect_pairs(Path(scratch) / "pairs", args.seed, pairs, **tasks)
            result["following"] = following_measures(
                model, Path(scratch) / "pairs", steps=args.steps, seed=args.noise_seed
            )
    if reviewed is not None:
        result["review"] = reviewed
    of = str(args.data) if args.data else f"seeds from {args.seed}"
    return headline(result) | {"checkpoint": str(folder), "data": of} | result


def _measure(
    folder: Path, model: WorldModel, data: Path, limit: int | None, args: argparse.Namespace
) -> dict[str, Any]:
    config = model.config
    cache = open_cache(
        data, size=config["image_size"], patch=config["patch"],
        actions_per_frame=config["actions_per_frame"], rig=config["rig"],
    )  # fmt: skip
    episodes = np.arange(len(cache))
    if limit is not None and limit < len(cache):
        episodes = np.linspace(0, len(cache) - 1, limit).round().astype(int)
    judge = load_judge(folder)
    if args.review and judge is None:
        raise ConfigError(f"--review needs the judge, but '{folder}' has none; run `wvl train visual-judge {folder}`.")
    result, imagined = evaluate(
        model,
        cache,
        episodes,
        blind=load_blind(folder, model),
        judge=judge,
        steps=args.steps,
        seed=args.noise_seed,
        progress=True,
    )
    misnaming = Misnaming(args.opposites)
    result["listening"] = listening_measures(
        model, cache, episodes, imagined, steps=args.steps, seed=args.noise_seed, misnaming=misnaming
    )
    patch = int(config["patch"])
    videos = _views(cache, episodes, imagined, patch) if args.lpips_weights or args.fvd_weights else []
    result["perceptual"] = perceptual_measures(videos, args.lpips_weights, args.fvd_weights)
    if args.sheet:
        picked = np.linspace(0, len(episodes) - 1, min(10, len(episodes))).round().astype(int)
        args.sheet.parent.mkdir(parents=True, exist_ok=True)
        write_sheet(args.sheet, cache, episodes[picked], [imagined[i] for i in picked], patch)
        result["sheet"] = str(args.sheet)
    if args.curves:
        write_drift(args.curves, result["images"]["drift"])
        result["curves"] = str(args.curves)
    if args.review:
        says = {side: np.array(result["visual"][side]["scores"]) > 0.5 for side in ("imagined", "true")}
        count = write_review(args.review, cache, episodes, imagined, patch, says)
        result["pictures"] = f"{count} in {args.review}: fill in review.csv, then give it with --reviewed"
    return result


def _views(
    cache: FrameCache, episodes: NDArray[np.int64], imagined: list[ImaginedEpisode], patch: int
) -> list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """Each view of each rollout as a pair of videos (T, S, S, 3): the imagined and the true one."""
    videos = []
    for episode, own in zip(episodes.tolist(), imagined, strict=True):
        start, n = int(cache.frame_start[episode]) + 1, len(own.frames)
        if n:
            mine = patches.from_patches(own.frames, patch)
            true = patches.from_patches(cache.frames[start : start + n], patch)
            videos += [(mine[:, view], true[:, view]) for view in range(patches.VIEWS)]
    return videos
