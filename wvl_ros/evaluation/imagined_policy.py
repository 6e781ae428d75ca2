"""A policy in closed loop in imagination, from the first observations of the same tabletop scenes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tqdm import tqdm

from wvl_ros.evaluation.closed_loop import Result, Start, unseen_wording
from wvl_ros.policies.small import SmallPolicy
from wvl_ros.training.practice import practise
from wvl_ros.world_model.imagination import Imagination
from wvl_ros.worlds import imagined_start
from wvl_ros.worlds.tabletop import TabletopWorld

_BATCH = 96
_IMAGE_SIZE = 128


def evaluate_imagined(
    policy: SmallPolicy, imagination: Imagination, rig: str, starts: Sequence[Start], temperature: float = 0.0
) -> list[Result]:
    """Runs all starts in batches and gives their results in the order of the starts; success is the reward head's.

    Args:
        imagination: of the world model; rig: of its cameras. temperature: 0 deploys the mean.
    """
    results: list[Result] = []
    worlds: dict[str, TabletopWorld] = {}
    for first in tqdm(range(0, len(starts), _BATCH), desc="imagined episodes", unit="batch", disable=None):
        some = starts[first : first + _BATCH]
        scenes = [_scene(worlds, start, imagination, rig) for start in some]
        generator = torch.Generator().manual_seed(some[0].seed)
        limits = [scene.max_steps for scene, _ in scenes]
        practice = practise(
            policy,
            imagination,
            [scene for scene, _ in scenes],
            [start.seed for start in some],
            temperature,
            generator,
            limits,
        )
        steps = practice.counts.sum((1, 2)).tolist()
        for start, (scene, variant), success, count in zip(some, scenes, practice.success.tolist(), steps, strict=True):
            outcome = "success" if success else "failure"
            results.append(Result(start.task, start.seed, variant, scene.instruction, outcome, count, start.unseen))
    for world in worlds.values():
        world.close()
    return results


def _scene(
    worlds: dict[str, TabletopWorld], start: Start, imagination: Imagination, rig: str
) -> tuple[imagined_start.Start, str]:
    """A start's first observation and its variant."""
    if start.task not in worlds:
        worlds[start.task] = TabletopWorld(start.task, _IMAGE_SIZE, _IMAGE_SIZE)
    world = worlds[start.task]
    episode = imagined_start.fresh_episode(world, start.seed, {"task": start.task, "variant": start.variant})
    wording = unseen_wording(world, start.seed) if start.unseen else ""
    scene = imagined_start.find_start(episode, 0, imagination, rig, instruction=wording)
    return scene, str(episode.extra["variant"])
