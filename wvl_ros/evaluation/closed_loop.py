"""A policy in closed loop on the tabletop, over several processes: one episode a start, the same each time."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

if TYPE_CHECKING:
    from wvl_ros.worlds.tabletop import TabletopWorld


@dataclass(frozen=True)
class Start:
    """One episode to run: task, seed of its scene, a scene variant or None, and whether its wording is unseen."""

    task: str
    seed: int
    variant: str | None = None
    unseen: bool = False


@dataclass(frozen=True)
class Result:
    """How an episode went."""

    task: str
    seed: int
    variant: str
    instruction: str
    outcome: str
    steps: int
    unseen: bool = False

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
        instruction = unseen_wording(world, start.seed) if start.unseen else info["instruction"]
        self.broker.reset(start.seed)
        done = False
        while not done:
            action = self.broker.action(observation, instruction, info["commanded_pose"])
            observation, _, terminated, truncated, info = world.step(action)
            done = terminated or truncated
        return Result(start.task, start.seed, info["variant"], instruction, info["outcome"], info["step"], start.unseen)


def unseen_wording(world: TabletopWorld, seed: int) -> str:
    """An instruction for a tabletop's present scene in words that no training episode used."""
    wordings = world.task.held_out
    things = world.placement
    assert things is not None, "reset the world first"
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
