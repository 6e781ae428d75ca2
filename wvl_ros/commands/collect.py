"""`wvl collect`: tabletop episodes of every outcome, by scripted experts or a policy, into files or a SANS dataset."""

from __future__ import annotations

import argparse
import multiprocessing
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wvl_ros.errors import ConfigError

if TYPE_CHECKING:
    from wvl_ros.sans.collect import Job
    from wvl_ros.sans.dataset import Dataset


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's options."""
    parser.add_argument("--task", default="all", help="pick_place, push, stack, sweep or all (default)")
    parser.add_argument("--episodes", type=int, default=100, help="episodes a task (default 100)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first episode; the others count up")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder or SANS dataset; episodes already there are kept"
    )
    parser.add_argument(
        "--format",
        choices=("files", "sans"),
        help="an episode file each, or one SANS dataset (default: files, but sans where --out is a dataset)",
    )
    parser.add_argument("--size", type=int, default=128, help="image height and width in pixels (default 128)")
    parser.add_argument("--stride", type=int, default=3, help="control steps an image (default 3: 5 Hz)")
    parser.add_argument("--policy", default="", help="checkpoint that plays instead of the experts: small, or a folder")
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        help="of the policy's sampling: each episode draws its own from 0 to this (default 0: it deploys the mean)",
    )
    parser.add_argument(
        "--imagined-in",
        metavar="WORLD_MODEL",
        help="let the policy act in this world model (a shipped name or a folder), and do in the tabletop what it did "
        "there: tells how far imagined success can be trusted",
    )
    parser.add_argument("--denoising-steps", type=int, help="of --imagined-in: a frame's (default: the model's)")
    parser.add_argument(
        "--mistaken",
        nargs="?",
        choices=("places", "things"),
        const="places",
        default="",
        help="whoever plays is mistaken and does not notice: by a few cm about where things lie (places, the default), "
        "so that actions do not betray how their episode goes; or about which of two is named (things)",
    )
    parser.add_argument("--good-only", action="store_true", help="flawless demonstrations instead of every outcome")
    parser.add_argument("--workers", type=int, default=1, help="processes (default 1)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Collects what is missing and counts the outcomes."""
    from tqdm import tqdm

    from wvl_ros.checkpoints import find
    from wvl_ros.sans.collect import Imagined, Job
    from wvl_ros.worlds.tasks import TASKS, find_task

    tasks = list(TASKS) if args.task == "all" else [find_task(args.task).name]
    if args.episodes < 1 or args.workers < 1 or args.stride < 1 or args.size < 16:
        raise ConfigError("--episodes, --workers and --stride must be at least 1, --size at least 16.")
    if args.temperature < 0 or (args.policy and args.good_only):
        raise ConfigError("--temperature must not be negative, and --good-only is for experts, not for --policy.")
    if args.imagined_in and not args.policy:
        raise ConfigError("--imagined-in needs a policy that acts there: give it with --policy.")
    if args.mistaken and (args.imagined_in or args.good_only):
        raise ConfigError("--mistaken goes neither with --imagined-in nor with --good-only; leave one out.")
    if args.denoising_steps is not None and not args.imagined_in:
        raise ConfigError("--denoising-steps belongs to --imagined-in.")
    policy = str(find("policy", args.policy)) if args.policy else ""
    jobs = [
        (args.out, Job(task, seed, args.size, args.stride, args.good_only, policy, args.temperature, args.mistaken))
        for seed in range(args.seed, args.seed + args.episodes)
        for task in tasks
    ]
    if (args.format or ("sans" if _is_dataset(args.out) else "files")) == "sans":
        collect, there = _append, {record.fingerprint for record in _dataset(*jobs[0]).records}
        todo = [(out, job) for out, job in jobs if job.fingerprint not in there]
    elif _is_dataset(args.out):
        raise ConfigError(f"'{args.out}' is a SANS dataset: leave out --format files, or choose another folder.")
    else:
        args.out.mkdir(parents=True, exist_ok=True)
        collect, todo = _save, [(out, job) for out, job in jobs if not _path(out, job).exists()]
    counts: Counter[str] = Counter()
    said: Counter[tuple[bool, bool]] = Counter()  # whether it succeeded in imagination, and in truth
    context = multiprocessing.get_context("spawn")  # a forked child would inherit the renderer's context
    with context.Pool(args.workers) as pool, tqdm(total=len(todo), unit="episode", disable=None) as bar:
        for batch in _batches([job for _, job in todo], policy, args):
            work = [(args.out, job) for job in batch]
            for job, (task, outcome) in zip(batch, pool.imap(collect, work), strict=True):
                counts[f"{task}/{outcome}"] += 1
                if isinstance(job, Imagined):
                    said[job.success, outcome == "success"] += 1
                bar.update()
    result: dict[str, Any] = {
        "out": str(args.out),
        "collected": len(todo),
        "kept": len(jobs) - len(todo),
        "outcomes": dict(sorted(counts.items())),
    }
    return result | ({"imagined": _trust(said)} if said else {})


def _batches(jobs: Sequence[Job], policy: str, args: argparse.Namespace) -> Iterator[Sequence[Job]]:
    """The jobs as they are, or, batch by batch, as the policy imagines them."""
    if not args.imagined_in:
        yield jobs
        return
    from wvl_ros.checkpoints import find
    from wvl_ros.training.acting_out import imagine

    model = find("world_model", args.imagined_in)
    yield from imagine(jobs, Path(policy), model, args.temperature, args.denoising_steps)


def _trust(said: Counter[tuple[bool, bool]]) -> dict[str, Any]:
    """How far success in imagination can be trusted, with Wilson 95 % intervals."""
    from wvl_ros.evaluation.wilson import wilson_interval

    def share(successes: int, of: int) -> dict[str, Any]:
        low, high = wilson_interval(successes, of)
        return {"share": round(successes / max(1, of), 4), "of": of, "interval_95": [round(low, 4), round(high, 4)]}

    every, imagined, true = sum(said.values()), said[True, True] + said[True, False], said[True, True]
    real = true + said[False, True]
    return {
        "imagined_success": share(imagined, every),
        "true_success": share(real, every),
        "true_of_imagined_successes": share(true, imagined),
        "imagined_of_true_successes": share(true, real),
    }


def show(result: dict[str, Any]) -> None:
    """Prints the result for people."""
    print(f"{result['collected']} episodes collected into '{result['out']}', {result['kept']} were there.")
    for name, count in result["outcomes"].items():
        print(f"{name}: {count}")
    for name, found in result.get("imagined", {}).items():
        low, high = found["interval_95"]
        print(f"{name.replace('_', ' ')}: {found['share']:.0%} of {found['of']} (95 % {low:.0%} to {high:.0%})")


def _path(out: Path, job: Job) -> Path:
    return out / f"{job.task}_{job.seed:07d}.safetensors"


def _save(work: tuple[Path, Job]) -> tuple[str, str]:
    out, job = work
    episode = job.run()
    episode.save(_path(out, job))
    return job.task, episode.outcome


def _append(work: tuple[Path, Job]) -> tuple[str, str]:
    out, job = work
    episode = job.run()
    _dataset(out, job).append(episode, origin="wvl collect", fingerprint=job.fingerprint)
    return job.task, episode.outcome


def _dataset(out: Path, job: Job) -> Dataset:
    from wvl_ros.sans.dataset import Dataset, DatasetFormat
    from wvl_ros.worlds.droid import CAMERAS

    return Dataset.open_or_create(out, DatasetFormat(dict.fromkeys(CAMERAS, (job.size, job.size))))


def _is_dataset(path: Path) -> bool:
    from wvl_ros.sans.store.format import is_dataset

    return is_dataset(path)
