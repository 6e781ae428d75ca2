"""`wvl evaluate policy`: success in closed loop by task, scene variant and wording, with Wilson intervals.

Several checkpoints are run on the same starts and compared start by start; in the tabletop, or in the world model.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import asdict
from math import comb
from typing import Any

import numpy as np

from wvl_ros.errors import ConfigError
from wvl_ros.evaluation.closed_loop import PolicyChoice, Result, Start, evaluate
from wvl_ros.evaluation.wilson import wilson_interval

EVALUATION_SEED = 1_000_000  # from here on never used for training or choices; validation has 900,000 to 999,999
WORLDS = ("tabletop", "imagined")
WORDINGS = ("seen", "unseen", "both")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `wvl evaluate policy`."""
    parser.add_argument(
        "--checkpoint",
        action="append",
        help="a shipped name or a folder (default: small); more of them are compared with the first",
    )
    parser.add_argument("--task", nargs="+", default=["all"], help="tasks, or 'all'")
    parser.add_argument("--variant", choices=("single", "two_objects", "two_goals"), help="only such scenes")
    parser.add_argument(
        "--seed", type=int, default=EVALUATION_SEED, help="seed of the first episode; the others follow"
    )
    parser.add_argument("--episodes", type=int, default=50, help="episodes a task")
    parser.add_argument("--execute-steps", type=int, help="actions of a chunk to execute (default: the checkpoint's)")
    parser.add_argument(
        "--temperature", type=float, default=0.0, help="0 deploys the mean, above it the policy samples"
    )
    parser.add_argument(
        "--wording",
        choices=WORDINGS,
        default="seen",
        help="instructions as in training, as in no training episode, or every start in both (default: seen)",
    )
    parser.add_argument("--world", choices=WORLDS, default="tabletop", help="where it acts (default: tabletop)")
    parser.add_argument("--world-model", default="small", help="of --world imagined: a shipped name or a folder")
    parser.add_argument("--denoising-steps", type=int, help="of --world imagined: a frame's (default: the model's)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes in the tabletop")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Evaluates policies; the same seeds give the same result. One entry a checkpoint, by the name it was given by."""
    from wvl_ros.checkpoints import find
    from wvl_ros.policies.small import SmallPolicy
    from wvl_ros.worlds.tasks import TASKS, find_task

    names = args.checkpoint or ["small"]
    if args.episodes < 1:
        raise ConfigError(f"--episodes must be at least 1, but is {args.episodes}.")
    if args.temperature < 0:
        raise ConfigError(f"--temperature must not be negative, but is {args.temperature}.")
    if len(set(names)) < len(names):
        raise ConfigError(f"--checkpoint {max(names, key=names.count)} is given twice; name each policy once.")
    if args.world == "imagined" and args.execute_steps is not None:
        raise ConfigError("--execute-steps is for the tabletop; imagination takes the checkpoint's own.")
    if args.world != "imagined" and args.denoising_steps is not None:
        raise ConfigError("--denoising-steps belongs to --world imagined.")
    tasks = [find_task(name) for name in (list(TASKS) if "all" in args.task else args.task)]
    if args.variant is not None:
        tasks = [task for task in tasks if args.variant in task.variants]
    starts = [
        Start(task.name, args.seed + i, args.variant, unseen)
        for task in tasks
        for i in range(args.episodes)
        for unseen in {"seen": [False], "unseen": [True], "both": [False, True]}[args.wording]
    ]
    choices = {name: PolicyChoice(find("policy", name), args.execute_steps, args.temperature) for name in names}
    policies = {name: SmallPolicy.from_pretrained(choice.checkpoint) for name, choice in choices.items()}
    results: dict[str, Any] = {}
    first: list[Result] = []
    for name, choice in choices.items():
        found = _imagined(policies[name], starts, args) if args.world == "imagined" else evaluate(
            choice, starts, args.workers
        )  # fmt: skip
        results[name] = {
            **_rate(found),
            "world": args.world,
            "seed": args.seed,
            "decoding": _decoding(policies[name].config.head, args.temperature),
            "tasks": summarise(found),
            "wordings": _wordings(found),
            "results": [asdict(result) for result in found],
        }
        if first:
            results[name]["gain"] = compare(first, found)
        first = first or found
    return results


def _imagined(policy: Any, starts: Sequence[Start], args: argparse.Namespace) -> list[Result]:
    from wvl_ros.checkpoints import find
    from wvl_ros.evaluation.imagined_policy import evaluate_imagined
    from wvl_ros.world_model.imagination import imagination
    from wvl_ros.world_model.loading import load_world_model

    model = load_world_model(find("world_model", args.world_model))
    drawn = imagination(model, steps=args.denoising_steps)
    return evaluate_imagined(policy, drawn, str(model.config["rig"]), starts, args.temperature)


def compare(before: Sequence[Result], after: Sequence[Result]) -> dict[str, Any]:
    """Two policies on the same starts: the gain in success, starts gained and lost, McNemar's exact p (two-sided)."""
    pairs = [(a.success, b.success) for a, b in zip(before, after, strict=True)]
    gained, lost = pairs.count((False, True)), pairs.count((True, False))
    changed = gained + lost
    tail = sum(comb(changed, k) for k in range(min(gained, lost) + 1)) / 2**changed
    by_task = {
        task: round(float(np.mean([int(b.success) - int(a.success) for a, b in zip(before, after, strict=True)
                                   if a.task == task])), 4)
        for task in dict.fromkeys(result.task for result in before)
    }  # fmt: skip
    return {
        "success_rate": round((gained - lost) / max(1, len(pairs)), 4),
        "tasks": by_task,
        "gained": gained,
        "lost": lost,
        "p": min(1.0, 2 * tail),
    }


def summarise(results: Sequence[Result]) -> dict[str, Any]:
    """Success by task, and of each by scene variant and wording: counts, rates and Wilson 95 % intervals."""
    tasks: dict[str, Any] = {}
    for task in dict.fromkeys(result.task for result in results):
        own = [result for result in results if result.task == task]
        variants = sorted({result.variant for result in own})
        tasks[task] = _rate(own) | {
            "near_success": sum(result.outcome == "near_success" for result in own),
            "mean_steps_to_success": _mean_steps(own),
            "variants": {variant: _rate([r for r in own if r.variant == variant]) for variant in variants},
            "wordings": _wordings(own),
        }
    return tasks


def _wordings(results: Sequence[Result]) -> dict[str, Any]:
    parts = {name: [r for r in results if r.unseen == unseen] for name, unseen in (("seen", False), ("unseen", True))}
    return {name: _rate(part) for name, part in parts.items() if part}


def _rate(results: Sequence[Result]) -> dict[str, Any]:
    successes = sum(result.success for result in results)
    low, high = wilson_interval(successes, len(results))
    return {
        "episodes": len(results),
        "successes": successes,
        "success_rate": round(successes / max(1, len(results)), 4),
        "interval_95": [round(low, 4), round(high, 4)],
    }


def _mean_steps(results: Sequence[Result]) -> float | None:
    steps = [result.steps for result in results if result.success]
    return round(float(np.mean(steps)), 1) if steps else None


def _decoding(head: str, temperature: float) -> str:
    if head == "flow":
        return "drawn by its flow"
    return "mean" if temperature == 0 else f"sampled at temperature {temperature:g}"


def show(result: dict[str, Any]) -> None:
    """Prints each policy's table for people, and how the later ones compare with the first."""
    for name, found in result.items():
        print(f"{'task':<12}{'episodes':<14}{'success':>9}{'rate':>8}  95 % interval")
        for task, numbers in [*found["tasks"].items(), ("all tasks", found)]:
            _row(task, "all", numbers)
            parts = {**numbers.get("variants", {}), **(numbers["wordings"] if len(numbers["wordings"]) > 1 else {})}
            for part, rate in parts.items():
                _row("", part, rate)
        print(f"Policy '{name}', {found['decoding']}, in the {found['world']} world, seeds from {found['seed']}.")
        if "gain" in found:
            gain = found["gain"]
            each = ", ".join(f"{task} {100 * points:+.1f}" for task, points in gain["tasks"].items())
            points = f"{100 * gain['success_rate']:+.1f} points ({each})"
            print(
                f"Against '{next(iter(result))}' on the same starts: {points}; {gain['gained']} gained, "
                f"{gain['lost']} lost, p = {gain['p']:.2g} (McNemar)."
            )


def _row(task: str, part: str, rate: dict[str, Any]) -> None:
    low, high = rate["interval_95"]
    count = f"{rate['successes']}/{rate['episodes']}"
    print(f"{task:<12}{part:<14}{count:>9}{rate['success_rate']:>8.0%}  {low:.0%} to {high:.0%}")
