"""`wvl evaluate world-model`: how true the world model's own rollouts of recorded episodes are."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from wvl_ros.checkpoints import find
from wvl_ros.errors import ConfigError
from wvl_ros.evaluation import metrics
from wvl_ros.evaluation.blind import BlindBaseline, blind_scores
from wvl_ros.evaluation.held_out import collect_held_out
from wvl_ros.evaluation.imagined import ImaginedEpisode, imagine_episodes, write_sheet
from wvl_ros.evaluation.outcome import judged, mean, outcome_measures, sentence, text
from wvl_ros.evaluation.policy import EVALUATION_SEED
from wvl_ros.evaluation.visual_judge import VisualJudge, judge_videos, load_judge
from wvl_ros.training.checkpointing import load_state, restore_module
from wvl_ros.training.frame_cache import FrameCache, open_cache
from wvl_ros.world_model import patches
from wvl_ros.world_model.kinematics import Kinematics
from wvl_ros.world_model.loading import load_world_model
from wvl_ros.world_model.model import WorldModel
from wvl_ros.worlds.droid import CAMERAS

BLIND_FILE = "blind_baseline.safetensors"
HORIZONS = (0.2, 1.0, 2.0, 3.0, 4.8)  # s
_PIXEL_HEIGHT = 128  # arm distances are given in pixels of an image this high


def image_measures(
    cache: FrameCache,
    episodes: NDArray[np.int64],
    imagined: Sequence[ImaginedEpisode],
    model: WorldModel,
    fps: float = 5.0,
) -> dict[str, Any]:
    """PSNR (dB) and SSIM per camera, over whole rollouts and at horizons (of the episodes that last so long)."""
    found: dict[str, list[tuple[float, NDArray[np.float64], NDArray[np.float64]]]] = {name: [] for name in CAMERAS}
    by_episode: dict[str, list[float]] = {"psnr": [], "ssim": []}
    patch = int(model.config["patch"])
    for episode, own in zip(episodes.tolist(), imagined, strict=True):
        n = len(own.frames)
        picked = np.unique(
            [*(round(s * fps) - 1 for s in HORIZONS if round(s * fps) <= n), *np.linspace(0, n - 1, 6).astype(int)]
        )
        if n == 0:
            continue
        start = int(cache.frame_start[episode]) + 1
        true = patches.from_patches(cache.frames[start + picked], patch)
        mine = patches.from_patches(own.frames[picked], patch)
        ratios, likenesses = [], []
        for view, name in enumerate(CAMERAS):
            ratio, likeness = metrics.psnr(mine[:, view], true[:, view]), metrics.ssim(mine[:, view], true[:, view])
            ratios.append(ratio)
            likenesses.append(likeness)
            found[name] += [(float(t + 1) / fps, p, s) for t, p, s in zip(picked, ratio, likeness, strict=True)]
        by_episode["psnr"].append(float(np.mean(ratios)))
        by_episode["ssim"].append(float(np.mean(likenesses)))
    result: dict[str, Any] = {}
    for name, rows in found.items():
        times, psnr, ssim = (np.array([row[i] for row in rows], dtype=float) for i in range(3))
        result[name] = {"psnr": mean(psnr), "ssim": mean(ssim)} | {
            f"psnr_at_{s}s": mean(psnr[np.isclose(times, s)]) for s in HORIZONS
        }
    every = [entry for rows in found.values() for entry in rows]
    result["psnr"] = mean(np.array([p for _, p, _ in every], dtype=float))
    result["ssim"] = mean(np.array([s for _, _, s in every], dtype=float))
    result["intervals_95"] = {name: metrics.mean_interval(np.array(values)) for name, values in by_episode.items()}
    return result


def arm_measures(
    cache: FrameCache, episodes: NDArray[np.int64], imagined: Sequence[ImaginedEpisode], model: WorldModel
) -> dict[str, Any]:
    """How well the imagined arm follows the true one.

    Returns:
        `tcp_mm` and `gripper`: error of the kinematic state. `tcp_px`: that, projected to the first exterior
        view. `drawn_px`: how far off the gripper is drawn in that view, by block matching on eight frames an episode.
        Pixels are those of a 128-pixel-high image.
    """
    found: dict[str, list[NDArray[np.float32]]] = {"tcp_mm": [], "tcp_px": [], "drawn_px": [], "gripper": []}
    ends = []
    geometry, patch, size = model.geometry, int(model.config["patch"]), int(model.config["image_size"])
    for episode, own in zip(episodes.tolist(), imagined, strict=True):
        n = len(own.kinematics)
        if n == 0:
            continue
        index = torch.arange(1, n + 1)
        true = Kinematics.unpack(cache.kinematics[cache.step(torch.full_like(index, episode), index)]).state()
        mine = Kinematics.unpack(own.kinematics).state()
        gap = (mine[:, :3] - true[:, :3]).norm(dim=1) * 1000
        found["tcp_mm"].append(gap.numpy())
        ends.append(float(gap[-1]))
        found["gripper"].append((mine[:, 9] - true[:, 9]).abs().numpy())
        if geometry.known[0] and cache.calibrated[episode] > 0:
            places = geometry.project(0, true[:, None, :3])[:, 0]
            apart = geometry.project(0, mine[:, None, :3])[:, 0] - places
            found["tcp_px"].append((apart.norm(dim=-1) * _PIXEL_HEIGHT).numpy())
            picked = np.unique(np.linspace(0, n - 1, 8).astype(int))
            truth = patches.from_patches(cache.frames[int(cache.frame_start[episode]) + 1 + picked], patch)[:, 0]
            drawn = patches.from_patches(own.frames[picked], patch)[:, 0]
            centers = (places[picked] + 0.5) * size
            shifts = [
                metrics.displacement(a, b, (float(x), float(y)))
                for a, b, (x, y) in zip(drawn, truth, centers, strict=True)
            ]
            known = [shift * _PIXEL_HEIGHT / size for shift in shifts if shift is not None]
            found["drawn_px"].append(np.array(known, dtype=np.float32))
    result: dict[str, Any] = {name: _spread(values) for name, values in found.items()}
    return result | {"tcp_mm_at_end": {"mean": mean(np.array(ends)), "median": _median(np.array(ends))}}


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
        "outcome": outcomes(lambda _: True),
        "outcome_by_task": {
            task: outcomes(lambda e, task=task: cache.tasks[e] == task)  # type: ignore[misc]
            for task in sorted({cache.tasks[e] for e in episodes.tolist()})
        },
    }
    if judge is not None:
        result["visual"] = visual_measures(judge, cache, episodes, [own.frames for own in imagined], model)
    return result, imagined


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
    truth, told = kinds == "success", np.isin(kinds, ("success", "near_success", "failure"))
    result = {}
    for name, own in (("imagined", videos), ("true", None)):
        scores = judge_videos(judge, cache, episodes, patch, own)
        result[name] = judged(scores > 0.5, scores, truth, kinds, told)
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
    parser.add_argument("--threads", type=int, default=None, help="CPU threads (default: torch's choice)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that make the episodes")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Evaluates a checkpoint; returns what `show` prints."""
    if args.episodes is not None and args.episodes < 1:
        raise ConfigError(f"--episodes must be at least 1, but is {args.episodes}.")
    if args.threads:
        torch.set_num_threads(args.threads)
    folder = find("world_model", args.checkpoint)
    model = load_world_model(folder)
    with tempfile.TemporaryDirectory() as scratch:
        if args.data:
            data, limit = args.data, args.episodes
        else:
            place, count = args.keep or Path(scratch), args.episodes or 200
            data, limit = (
                collect_held_out(place, args.seed, count, find("policy", args.policy), workers=args.workers),
                None,
            )
        return _measure(folder, model, data, limit, args)


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
    result, imagined = evaluate(
        model,
        cache,
        episodes,
        blind=load_blind(folder, model),
        judge=load_judge(folder, list(config["vocabulary"])),
        steps=args.steps,
        seed=args.noise_seed,
        progress=True,
    )
    if args.sheet:
        picked = np.linspace(0, len(episodes) - 1, min(10, len(episodes))).round().astype(int)
        args.sheet.parent.mkdir(parents=True, exist_ok=True)
        write_sheet(args.sheet, cache, episodes[picked], [imagined[i] for i in picked], config["patch"])
        result["sheet"] = str(args.sheet)
    of = str(args.data) if args.data else f"seeds from {args.seed}"
    return {"checkpoint": str(folder), "data": of} | headline(result) | result


def headline(result: dict[str, Any]) -> dict[str, float | None]:
    """The figures that a world model is compared by, each with the ends of its 95 % interval."""
    outcome, images = result["outcome"], result["images"]
    figures = {name: (images[name], images["intervals_95"][name]) for name in ("psnr", "ssim")}
    figures["reward_alignment"] = (outcome["accuracy"], outcome["interval_95"])
    figures["false_success"] = (outcome["false_success_near"], outcome["false_success_near_interval_95"])
    if "visual" in result:
        for name, of in (("visual_alignment", "imagined"), ("visual_judge_accuracy", "true")):
            figures[name] = (result["visual"][of]["accuracy"], result["visual"][of]["interval_95"])
    if "blind" in outcome:
        figures["blind_alignment"] = (outcome["blind"]["accuracy"], outcome["blind"]["interval_95"])
    flat: dict[str, float | None] = {}
    for name, (value, (low, high)) in figures.items():
        flat |= {name: value, f"{name}_low": low, f"{name}_high": high}
    return flat


def show(result: dict[str, Any]) -> None:
    """Prints the figures for people."""
    images, arm = result["images"], result["arm"]
    print(f"{result['episodes']} episodes of {result['data']}, imagined by {result['checkpoint']}")
    print(f"images   PSNR {text(images['psnr'])} dB, SSIM {text(images['ssim'], 3)} over whole rollouts")
    for camera in CAMERAS:
        at = ", ".join(f"{s} s {text(images[camera][f'psnr_at_{s}s'])}" for s in HORIZONS)
        print(f"  {camera:24s} PSNR {text(images[camera]['psnr'])}, SSIM {text(images[camera]['ssim'], 3)}; at {at}")
    mm, px, drawn = arm["tcp_mm"], arm["tcp_px"], arm["drawn_px"]
    print(
        f"arm      {text(mm['mean'])} mm from the true one (median {text(mm['median'])}, 95 % {text(mm['p95'])});",
        end=" ",
    )
    print(f"{text(px['mean'])} px of {_PIXEL_HEIGHT} (95 % {text(px['p95'])})")
    print(f"         drawn {text(drawn['mean'])} px off (median {text(drawn['median'])}, 95 % {text(drawn['p95'])})")
    for name, outcome in {"outcome": result["outcome"], **result["outcome_by_task"]}.items():
        print(f"{name:12s} {sentence(outcome)}")
        if "blind" in outcome:
            print(f"{'':12s} blind baseline: {sentence(outcome['blind'])}")
    if "visual" in result:
        print(f"videos       by a judge of true frames: {sentence(result['visual']['imagined'])}")
        print(f"{'':12s} the judge on the true videos: {sentence(result['visual']['true'])}")
    else:
        print("videos       visual alignment not computed: the checkpoint has no visual_judge.safetensors")


def save_blind_file(folder: Path, model: BlindBaseline) -> None:
    """Puts the blind baseline beside a checkpoint."""
    from wvl_ros.training.checkpointing import module_tensors, save_state

    save_state(
        folder / BLIND_FILE, module_tensors(model, "blind"), {"trained_on": "actions, first pose and instruction"}
    )


def load_blind(folder: Path, model: WorldModel) -> BlindBaseline | None:
    """The blind baseline beside a checkpoint; None where there is none."""
    path = folder / BLIND_FILE
    if not path.is_file():
        return None
    blind = BlindBaseline(list(model.config["vocabulary"]), int(model.config["actions_per_frame"]))
    restore_module(blind, load_state(path)[0], "blind")
    return blind.eval()


def _median(values: NDArray[np.float64]) -> float | None:
    return round(float(np.median(values)), 4) if len(values) else None


def _spread(values: list[NDArray[np.float32]]) -> dict[str, float | None]:
    joined = np.concatenate(values).astype(float) if values else np.empty(0)
    p95 = round(float(np.quantile(joined, 0.95)), 4) if len(joined) else None
    return {"mean": mean(joined), "median": _median(joined), "p95": p95}
