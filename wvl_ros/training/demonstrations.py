"""Demonstrations in the tabletop, with the corrections that behaviour cloning needs.

Following DART (Laskey et al. 2017) the expert is disturbed while it acts, and its undisturbed choice is kept as the
label at every visited state, in `Episode.extra["label"]`; a clone then knows how to come back.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from wvl_ros.policies.vision import shrink
from wvl_ros.sans.episode import Episode
from wvl_ros.worlds import droid

if TYPE_CHECKING:
    from wvl_ros.worlds.tabletop import TabletopWorld

Array = NDArray[np.float64]

FIRST_SEED = 100_000  # demonstrations use seeds from here; those from 900,000 on are for validation and evaluation
IMAGE_STRIDE = 3


@dataclass(frozen=True)
class Disturbance:
    """How an expert is disturbed, in DROID steps (1 = 0.075 m).

    Attributes:
        noise: standard deviation on every velocity.
        pushes: probability a step that a push starts; it lasts 2 to 6 steps.
        push_size: standard deviation of a push's velocity.
        displaced: share of episodes that begin with a long push.
    """

    noise: float = 0.06
    pushes: float = 0.05
    push_size: float = 0.35
    displaced: float = 0.4


def record_demonstration(task: str, seed: int, disturbance: Disturbance | None = None, image_size: int = 64) -> Episode:
    """One demonstration in the tabletop by its scripted expert, disturbed as told; images averaged to `image_size`.

    `extra["label"]` holds the expert's undisturbed actions (N - 1, 7), `extra["disturbed"]` the steps of pushes, which
    are no choice of the expert's.
    """
    from wvl_ros.worlds.experts import make_expert  # MuJoCo loads only where episodes are recorded
    from wvl_ros.worlds.tabletop import TabletopWorld

    disturbance = disturbance or Disturbance()
    if task not in _worlds:
        _worlds[task] = TabletopWorld(task, image_stride=IMAGE_STRIDE)
    world = _worlds[task]
    rng = np.random.default_rng([seed, 1])
    observation, info = world.reset(seed=seed)
    expert = make_expert(world, seed=seed)
    observations, commanded = [observation], [info["commanded_pose"]]
    labels: list[Array] = []
    rewards: list[float] = []
    disturbed: list[int] = []
    push, left = np.zeros(6), 0
    if rng.random() < disturbance.displaced:
        push, left = np.append(_direction(rng) * 0.7, np.zeros(3)), int(rng.integers(2, 7))
    done = False
    while not done:
        expert.act()
        labels.append(expert.label)
        if left == 0 and rng.random() < disturbance.pushes:
            push, left = rng.normal(0.0, disturbance.push_size, 6) * (1, 1, 1, 0.3, 0.3, 0.3), int(rng.integers(2, 7))
        start = commanded[-1][:6]
        velocity = droid.pose_velocity(start, expert.label[:6]) + rng.normal(0.0, disturbance.noise, 6)
        if left:
            velocity, left = velocity + push, left - 1
            disturbed.append(len(rewards))
        observation, reward, terminated, truncated, info = world.step(
            np.append(droid.move_pose(start, velocity), expert.label[6])
        )
        observations.append(observation)
        commanded.append(info["commanded_pose"])
        rewards.append(reward)
        done = terminated or truncated
    images = {
        camera: shrink([o[camera] for o in observations[::IMAGE_STRIDE]], image_size, camera).permute(0, 2, 3, 1)
        for camera in droid.CAMERAS
    }
    return Episode(
        images={camera: np.ascontiguousarray(stack.numpy()) for camera, stack in images.items()},
        joint_position=np.stack([o["joint_position"] for o in observations]),
        cartesian_position=np.stack([o["cartesian_position"] for o in observations]),
        gripper_position=np.stack([o["gripper_position"] for o in observations]),
        action=np.stack(commanded[1:]),
        reward=np.array(rewards, np.float32),
        task=task,
        instruction=info["instruction"],
        outcome=info["outcome"],
        outcome_source="world",
        source="expert/tabletop",
        episode_id=f"demonstration_{seed}",
        image_stride=IMAGE_STRIDE,
        commanded_start=commanded[0],
        extra={
            "seed": seed,
            "variant": info["variant"],
            "label": np.round(labels, 6).tolist(),
            "disturbed": disturbed,
        },
    )


_worlds: dict[str, TabletopWorld] = {}  # one a task and process: compiling a scene costs more than an episode


def _direction(rng: np.random.Generator) -> Array:
    vector = rng.normal(size=3)
    return np.asarray(vector / np.linalg.norm(vector))


def collect(folder: Path, tasks: Sequence[str], count: int, workers: int = 1, first_seed: int = FIRST_SEED) -> int:
    """Records `count` demonstrations in turn over the tasks into the folder; those already there are kept.

    Returns:
        How many were recorded now.
    """
    folder.mkdir(parents=True, exist_ok=True)
    seeds = range(first_seed, first_seed + count)
    jobs = [(tasks[i % len(tasks)], seed, folder / f"demonstration_{seed}.safetensors") for i, seed in enumerate(seeds)]
    missing = [job for job in jobs if not job[2].exists()]
    if missing:
        context = multiprocessing.get_context("spawn")  # MuJoCo's renderer does not survive a fork
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            futures = [pool.submit(_record_to_file, *job) for job in missing]
            for future in tqdm(as_completed(futures), total=len(futures), desc="demonstrations", disable=None):
                future.result()
    return len(missing)


def _record_to_file(task: str, seed: int, path: Path) -> None:
    torch.set_num_threads(1)
    record_demonstration(task, seed).save(path)
