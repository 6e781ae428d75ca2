"""Whether the video follows the actions: two action sequences from one start, and actions at random.

A pair is two tabletop episodes of the same reset, one played by a flawless expert, one by an expert that misses. Both
are imagined from their common first frame, so that the actions alone part them; each video is then compared with its
own truth and with the other's, which is the truth of the swapped actions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wvl_ros.evaluation import metrics
from wvl_ros.evaluation.arm import arm_measures
from wvl_ros.evaluation.images import image_measures
from wvl_ros.evaluation.imagined import ImaginedEpisode, imagine_episodes
from wvl_ros.evaluation.outcome import best_run, mean
from wvl_ros.evaluation.wilson import wilson_interval
from wvl_ros.sans.collect import STEPS, collect_episode
from wvl_ros.training.frame_cache import FrameCache, open_cache
from wvl_ros.world_model.model import WorldModel
from wvl_ros.worlds.experts import Skill
from wvl_ros.worlds.tabletop import TabletopWorld
from wvl_ros.worlds.tasks import TASKS

SEED_OFFSET = 300_000  # from the first episode's seed, so that no scene is used twice
_MISSES = (Skill(goal_bias=0.12), Skill(grasp_bias=0.035))  # beside the goal, or beside the object
_ALIKE = 35.0  # dB: where the two truths are more alike than this, no video can be nearer to one of them


def collect_pairs(folder: Path, seed: int, pairs: int, *, tasks: Sequence[str] = tuple(TASKS), size: int = 128) -> None:
    """Makes of each task `pairs` pairs, and as many episodes of random motion over the table, in `folder`.

    Seeds start at `seed` + `SEED_OFFSET`. size: px.
    """
    for task in tasks:
        world = TabletopWorld(task, size, size, image_stride=3)
        for i in range(pairs):
            number, steps = seed + SEED_OFFSET + i, STEPS[task]
            episodes = {
                "a": collect_episode(world, task, number, Skill(), steps, "good"),
                "b": collect_episode(world, task, number, _MISSES[i % len(_MISSES)], steps, "miss"),
                "random": collect_episode(world, task, number, Skill(), STEPS["push"], "wander"),
            }
            for kind, episode in episodes.items():
                named = replace(episode, episode_id=f"{task}_{number:07d}_{kind}")
                named.save(folder / f"{named.episode_id}.safetensors")
        world.close()


def following_measures(model: WorldModel, folder: Path, *, steps: int = 1, seed: int = 0) -> dict[str, Any]:
    """How the model's videos follow the actions of the episodes that `collect_pairs` made.

    Returns:
        `pairs`, `frames` (those at which the truths differ visibly), `own_nearer` (share of these that are nearer to
        their own truth than to the other's) with its interval over episodes, `own_nearer_at_end` (of episodes, by the
        last frame) with Wilson's, `psnr_own` and `psnr_other` (dB, same frames), `ranked_right` (share of pairs with
        one success in which the reward head gives this one more). `random`: `psnr`, `ssim`, `psnr_of_first_frame` (of
        a video that stands still) and the arm's distances.
    """
    config = model.config
    cache = open_cache(
        folder, size=config["image_size"], patch=config["patch"],
        actions_per_frame=config["actions_per_frame"], rig=config["rig"],
    )  # fmt: skip
    names = [entry.removesuffix(".safetensors") for entry in sorted(path.name for path in folder.glob("*.safetensors"))]
    place = {name: number for number, name in enumerate(names)}
    pairs = [(place[name], place[f"{name[:-1]}b"]) for name in names if name.endswith("_a")]
    imagined = imagine_episodes(model, cache, np.arange(len(cache)), steps=steps, seed=seed)
    result = pair_measures(cache, pairs, imagined, int(config["success_frames"]))
    walks = np.array([place[name] for name in names if name.endswith("_random")], dtype=np.int64)
    return result | {"random": _random(cache, walks, [imagined[i] for i in walks], model)}


def pair_measures(
    cache: FrameCache, pairs: list[tuple[int, int]], imagined: Sequence[ImaginedEpisode], run: int
) -> dict[str, Any]:
    """The measures of pairs of episodes of a cache, of which all are imagined; `run`: frames that make a success."""
    shares, ends, own_psnr, other_psnr, ranked = [], [], [], [], []
    frames = 0
    for pair in pairs:
        truths = [_true(cache, episode) for episode in pair]
        apart = _psnr(truths[0], truths[1]) < _ALIKE
        for side in range(2):
            own = _psnr(imagined[pair[side]].frames, truths[side])
            other = _psnr(imagined[pair[side]].frames, truths[1 - side])
            if apart.any():
                shares.append(float((own > other)[apart].mean()))
                own_psnr.append(float(own[apart].mean()))
                other_psnr.append(float(other[apart].mean()))
                frames += int(apart.sum())
            if apart[-1]:
                ends.append(bool(own[-1] > other[-1]))
        won = [cache.outcomes[episode] == "success" for episode in pair]
        if won[0] != won[1]:
            peaks = [best_run(imagined[episode].success_probability, run) for episode in pair]
            ranked.append(float(peaks[won.index(True)] > peaks[won.index(False)]))
    return {
        "pairs": len(pairs),
        "frames": frames,
        "own_nearer": mean(np.array(shares)),
        "own_nearer_interval_95": metrics.mean_interval(np.array(shares)),
        "own_nearer_at_end": mean(np.array(ends, dtype=float)),
        "own_nearer_at_end_interval_95": [round(x, 4) for x in wilson_interval(sum(ends), len(ends))],
        "psnr_own": mean(np.array(own_psnr)),
        "psnr_other": mean(np.array(other_psnr)),
        "pairs_with_one_success": len(ranked),
        "ranked_right": mean(np.array(ranked)),
    }


def _random(
    cache: FrameCache, episodes: NDArray[np.int64], imagined: list[ImaginedEpisode], model: WorldModel
) -> dict[str, Any]:
    images = image_measures(cache, episodes, imagined, model)
    still = []
    for episode in episodes.tolist():
        truth = _true(cache, episode)
        start = int(cache.frame_start[episode])
        first = cache.frames[start : start + 1]
        still.append(float(_psnr(np.broadcast_to(first, truth.shape), truth).mean()))
    arm = arm_measures(cache, episodes, imagined, model)
    return {
        "episodes": len(episodes),
        "psnr": images["psnr"],
        "ssim": images["ssim"],
        "psnr_of_first_frame": mean(np.array(still)),
        **{name: arm[name] for name in ("tcp_mm", "tcp_px", "drawn_px")},
    }


def _true(cache: FrameCache, episode: int) -> NDArray[np.uint8]:
    start, count = int(cache.frame_start[episode]), int(cache.frame_count[episode])
    return cache.frames[start + 1 : start + count]


def _psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Of frames as patches, all views together."""
    return metrics.psnr(a, b)
