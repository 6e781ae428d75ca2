"""`wvl collect`: tabletop episodes of every outcome, by scripted experts, into a folder of episode files."""

from __future__ import annotations

import argparse
import multiprocessing
from collections import Counter
from pathlib import Path
from typing import Any

from wvl_ros.errors import ConfigError

STEPS = {"pick_place": 60, "push": 60, "stack": 60, "sweep": 165}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's options."""
    parser.add_argument("--task", default="all", help="pick_place, push, stack, sweep or all (default)")
    parser.add_argument("--episodes", type=int, default=100, help="episodes a task (default 100)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first episode; the others count up")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to; episodes already there are kept")
    parser.add_argument("--size", type=int, default=128, help="image height and width in pixels (default 128)")
    parser.add_argument("--stride", type=int, default=3, help="control steps an image (default 3: 5 Hz)")
    parser.add_argument("--good-only", action="store_true", help="flawless demonstrations instead of every outcome")
    parser.add_argument("--workers", type=int, default=1, help="processes (default 1)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Collects what is missing and counts the outcomes."""
    from tqdm import tqdm

    from wvl_ros.worlds.tasks import TASKS, find_task

    tasks = list(TASKS) if args.task == "all" else [find_task(args.task).name]
    if args.episodes < 1 or args.workers < 1 or args.stride < 1 or args.size < 16:
        raise ConfigError("--episodes, --workers and --stride must be at least 1, --size at least 16.")
    args.out.mkdir(parents=True, exist_ok=True)
    jobs = [
        (task, seed, args.out / f"{task}_{seed:07d}.safetensors", args.size, args.stride, args.good_only)
        for seed in range(args.seed, args.seed + args.episodes)
        for task in tasks
    ]
    todo = [job for job in jobs if not job[2].exists()]
    counts: Counter[str] = Counter()
    context = multiprocessing.get_context("spawn")  # a forked child would inherit the renderer's context
    with context.Pool(args.workers) as pool, tqdm(total=len(todo), unit="episode", disable=None) as bar:
        for task, outcome in pool.imap_unordered(_collect, todo):
            counts[f"{task}/{outcome}"] += 1
            bar.update()
    return {
        "out": str(args.out),
        "collected": len(todo),
        "kept": len(jobs) - len(todo),
        "outcomes": dict(sorted(counts.items())),
    }


_worlds: dict[tuple[int, int], Any] = {}


def _collect(job: tuple[str, int, Path, int, int, bool]) -> tuple[str, str]:
    from wvl_ros.sans.collect import collect_episode
    from wvl_ros.worlds.experts import Skill
    from wvl_ros.worlds.tabletop import TabletopWorld

    task, seed, path, size, stride, good = job
    if (size, stride) not in _worlds:
        _worlds[size, stride] = TabletopWorld(task, size, size, image_stride=stride)
    skill, mode = (Skill(), "good") if good else (None, "")
    episode = collect_episode(_worlds[size, stride], task, seed, skill, STEPS[task], mode)
    episode.save(path)
    return task, episode.outcome
