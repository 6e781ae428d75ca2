"""What a policy does in imagination, to be done in the tabletop: shows a world model where it flatters a policy.

The recorded actions of a policy that saw the real thing betray how its episode went: where it missed, it hesitates or
tries again. So a world model may tell outcomes rightly when it is shown recorded actions, and still believe whatever a
policy does that sees imagined pictures only. Actions chosen there and done in the real world, unseen, betray nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from wvl_ros.policies.small import SmallPolicy
from wvl_ros.sans.collect import Imagined, Job
from wvl_ros.training.imagined_episodes import Recorder
from wvl_ros.training.practice import practise
from wvl_ros.world_model.imagination import imagination
from wvl_ros.world_model.loading import load_world_model
from wvl_ros.worlds.imagined_start import find_start, fresh_episode
from wvl_ros.worlds.tabletop import TabletopWorld

BATCH = 96  # rollouts at a time


def imagine(
    jobs: Sequence[Job], policy: Path, world_model: Path, temperature: float, steps: int | None = None
) -> Iterator[list[Imagined]]:
    """The jobs, batch by batch, as the policy imagines them in closed loop from their true first observations.

    Args:
        policy, world_model: folders of their checkpoints.
        temperature: of the policy's sampling; each batch draws its own from 0 to this, by the seed of its first job.
        steps: denoising steps a frame; None takes the model's default.
    """
    player, model = SmallPolicy.from_pretrained(policy), load_world_model(world_model)
    worlds: dict[str, TabletopWorld] = {}
    for first in range(0, len(jobs), BATCH):
        some = jobs[first : first + BATCH]
        rng = np.random.default_rng([some[0].seed, len(some[0].task)])
        recorder = Recorder(imagination(model, steps=steps, stop_at_success=False))  # as long as any other episode
        starts = []
        for job in some:
            if job.task not in worlds:
                worlds[job.task] = TabletopWorld(job.task, job.size, job.size)
            episode = fresh_episode(worlds[job.task], job.seed, {"task": job.task})
            starts.append(find_start(episode, 0, recorder, str(model.config["rig"])))
        generator = torch.Generator().manual_seed(some[0].seed)
        seeds = [job.seed for job in some]
        practice = practise(player, recorder, starts, seeds, float(rng.uniform(0, temperature)), generator)
        episodes = recorder.episodes(range(len(some)), starts)
        yield [
            Imagined(
                **asdict(job), actions=np.asarray(episode.action, float), world_model=world_model.name,
                success=bool(success), chance=round(float(chance), 4),
            )
            for job, episode, success, chance in zip(some, episodes, practice.success, practice.chance, strict=True)
        ]  # fmt: skip
    for world in worlds.values():
        world.close()
