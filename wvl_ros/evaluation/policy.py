"""`wvl evaluate policy`: success in closed loop on the tabletop, by task and scene variant, with Wilson intervals."""

from __future__ import annotations

import argparse
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from wvl_ros.errors import ConfigError
from wvl_ros.evaluation.wilson import wilson_interval

EVALUATION_SEED = 1_000_000  # from here on never used for training or choices; validation has 900,000 to 999,999


@dataclass(frozen=True)
class Start:
    """One episode to run: task, seed of its scene, a scene variant or None, and whether its wording is held out."""

    task: str
    seed: int
    variant: str | None = None
    held_out: bool = False


@dataclass(frozen=True)
class Result:
    """How an episode went."""

    task: str
    seed: int
    variant: str
    instruction: str
    outcome: str
    steps: int

    @property
    def success(self) -> bool:
        """Whether the task was achieved."""
        return self.outcome == "success"


@dataclass(frozen=True)
class PolicyChoice:
    """Which policy to run: a checkpoint folder, and how it decodes.

    Attributes:
        checkpoint: folder of the weights.
        execute_steps: actions of a chunk to execute; None takes the checkpoint's own.
        temperature: 0 deploys the mean, above it the policy samples.
    """

    checkpoint: Path
    execute_steps: int | None = None
    temperature: float = 0.0


class Evaluator:
    """One process's policy and worlds."""

    def __init__(self, choice: PolicyChoice) -> None:
        """Loads the policy.

        Raises:
            CheckpointError: its weights are missing or unfit.
        """
        import torch

        from wvl_ros.policies.broker import ChunkBroker
        from wvl_ros.policies.small import SmallPolicy

        torch.set_num_threads(1)
        sample = choice.temperature > 0
        policy = SmallPolicy.from_pretrained(
            choice.checkpoint, sample=sample, temperature=choice.temperature if sample else 1.0
        )
        if choice.execute_steps is not None:
            policy.execute_steps = replace(policy.config, execute_steps=choice.execute_steps).execute_steps
        self.broker = ChunkBroker(policy)
        self._worlds: dict[str, Any] = {}

    def run(self, start: Start) -> Result:
        """One closed-loop episode."""
        from wvl_ros.worlds.tabletop import TabletopWorld

        # Policies look at every third step at most, so the frames between need not be rendered.
        if start.task not in self._worlds:
            self._worlds[start.task] = TabletopWorld(start.task, image_stride=3)
        world = self._worlds[start.task]
        observation, info = world.reset(seed=start.seed, options={"variant": start.variant} if start.variant else None)
        instruction = _held_out_wording(world, start.seed) if start.held_out else info["instruction"]
        self.broker.reset(start.seed)
        done = False
        while not done:
            action = self.broker.action(observation, instruction, info["commanded_pose"])
            observation, _, terminated, truncated, info = world.step(action)
            done = terminated or truncated
        return Result(start.task, start.seed, info["variant"], instruction, info["outcome"], info["step"])


def _held_out_wording(world: Any, seed: int) -> str:
    """An instruction in words that no training episode used."""
    wordings = world.task.held_out
    things = world.placement
    colors = {"object": things.object_colors[0] if things.object_colors else "", "goal": things.goal_colors[0]}
    return str(wordings[seed % len(wordings)].format(**colors))


def evaluate(choice: PolicyChoice, starts: Sequence[Start], workers: int = 1) -> list[Result]:
    """Runs all starts, over several processes, and gives their results in the order of the starts.

    Raises:
        CheckpointError: the policy's weights are missing or unfit.
        UnknownNameError: no such task or variant.
    """
    if workers <= 1:
        evaluator = Evaluator(choice)
        return [evaluator.run(start) for start in tqdm(starts, desc="episodes", disable=None)]
    Evaluator(choice)  # so that a bad checkpoint is one clear sentence instead of a broken pool
    context = multiprocessing.get_context("spawn")  # MuJoCo's renderer does not survive a fork
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(choice,)) as pool:
        futures = {pool.submit(_run_in_worker, start): i for i, start in enumerate(starts)}
        results: dict[int, Result] = {}
        for future in tqdm(as_completed(futures), total=len(futures), desc="episodes", disable=None):
            results[futures[future]] = future.result()
    return [results[i] for i in range(len(starts))]


_evaluator: Evaluator | None = None


def _start_worker(choice: PolicyChoice) -> None:
    global _evaluator  # noqa: PLW0603 (one a process)
    _evaluator = Evaluator(choice)


def _run_in_worker(start: Start) -> Result:
    assert _evaluator is not None
    return _evaluator.run(start)


def summarise(results: Sequence[Result]) -> dict[str, Any]:
    """Success by task and by scene variant: counts, rates and Wilson 95 % intervals."""
    tasks: dict[str, Any] = {}
    for task in dict.fromkeys(result.task for result in results):
        own = [result for result in results if result.task == task]
        variants = sorted({result.variant for result in own})
        tasks[task] = _rate(own) | {
            "near_success": sum(result.outcome == "near_success" for result in own),
            "mean_steps_to_success": _mean_steps(own),
            "variants": {variant: _rate([r for r in own if r.variant == variant]) for variant in variants},
        }
    return tasks


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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `wvl evaluate policy`."""
    parser.add_argument("--checkpoint", default="small", help="a shipped name or a folder (default: small)")
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
    parser.add_argument("--held-out", action="store_true", help="instructions worded as in no training episode")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Evaluates a policy; the same seeds give the same result."""
    from wvl_ros.checkpoints import find
    from wvl_ros.worlds.tasks import TASKS, find_task

    if args.episodes < 1:
        raise ConfigError(f"--episodes must be at least 1, but is {args.episodes}.")
    if args.temperature < 0:
        raise ConfigError(f"--temperature must not be negative, but is {args.temperature}.")
    names = list(TASKS) if "all" in args.task else args.task
    tasks = [find_task(name) for name in names]
    if args.variant is not None:
        tasks = [task for task in tasks if args.variant in task.variants]
    starts = [
        Start(task.name, args.seed + i, args.variant, args.held_out) for task in tasks for i in range(args.episodes)
    ]
    choice = PolicyChoice(find("policy", args.checkpoint), args.execute_steps, args.temperature)
    results = evaluate(choice, starts, args.workers)
    return {
        "checkpoint": str(args.checkpoint),
        "seed": args.seed,
        "decoding": "mean" if args.temperature == 0 else f"sampled at temperature {args.temperature:g}",
        "tasks": summarise(results),
        "episodes": [asdict(result) for result in results],
    }


def show(result: dict[str, Any]) -> None:
    """Prints the result as a table for people."""
    print(f"{'task':<12}{'scenes':<14}{'success':>9}{'rate':>8}  95 % interval")
    for task, numbers in result["tasks"].items():
        for scenes, rate in [("all", numbers), *numbers["variants"].items()]:
            low, high = rate["interval_95"]
            count = f"{rate['successes']}/{rate['episodes']}"
            name = task if scenes == "all" else ""
            print(f"{name:<12}{scenes:<14}{count:>9}{rate['success_rate']:>8.0%}  {low:.0%} to {high:.0%}")
    print(f"Policy '{result['checkpoint']}', {result['decoding']}, seeds from {result['seed']}.")
