"""Practice in the tabletop itself: what imagination would give if it were perfect, and a baseline for it."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from wvl_ros.errors import EpisodeError
from wvl_ros.policies.network import PolicyConfig
from wvl_ros.policies.noise import ChunkNoise
from wvl_ros.policies.small import SmallPolicy
from wvl_ros.sans.collect import STEPS
from wvl_ros.training.arena import Beginning
from wvl_ros.training.practice import TIMED, Practice, choose, join, kept_places
from wvl_ros.worlds import droid
from wvl_ros.worlds.recorded import commanded_poses

_worlds: dict[tuple[str, int], Any] = {}  # one a task and process: compiling a scene costs more than a rollout


@dataclass(frozen=True, eq=False)
class _Job:
    """The rollouts from one beginning: of which scene, after which actions (N, 7), with which seeds of the policy's
    sampling.
    """

    task: str
    seed: int
    variant: str
    instruction: str
    behind: NDArray[np.float64]
    seeds: tuple[int, ...]


class TabletopArena:
    """Practice in the tabletop, from recorded tabletop episodes, done again up to a step; over several processes.

    The rollouts are as long as imagined ones. Close it after use.
    """

    name, doubter = "tabletop", ""

    def __init__(self, workers: int = 1) -> None:
        context = multiprocessing.get_context("spawn")  # MuJoCo's renderer does not survive a fork
        self._pool = ProcessPoolExecutor(workers, mp_context=context)

    def close(self) -> None:
        """Ends its processes."""
        self._pool.shutdown(cancel_futures=True)

    def practise(
        self,
        policy: SmallPolicy,
        beginnings: Sequence[Beginning],
        seeds: Sequence[int],
        temperature: float,
        generator: torch.Generator,
    ) -> Practice:
        """See `Arena.practise`; `generator` gives each rollout a seed of its own, `seeds` say nothing here.

        Raises:
            EpisodeError: an episode is not the tabletop's.
        """
        drawn = torch.randint(2**31, (len(beginnings),), generator=generator).tolist()
        groups: list[list[int]] = []
        for i in range(len(beginnings)):
            if i > 0 and beginnings[i] is beginnings[i - 1]:
                groups[-1].append(i)
            else:
                groups.append([i])
        weights = {name: tensor.numpy() for name, tensor in policy.network.state_dict().items()}
        futures = [
            self._pool.submit(
                _run, policy.config, weights, policy.noise, temperature, _job(beginnings[g[0]], [drawn[i] for i in g])
            )
            for g in groups
        ]
        return join([future.result() for future in futures])

    def doubted(self) -> list[bool]:
        """Nobody doubts the truth."""
        return []


def _job(beginning: Beginning, seeds: Sequence[int]) -> _Job:
    entry = beginning.entry
    episode = entry.load(images=False)
    extra = episode.extra
    if "seed" not in extra or "variant" not in extra:
        raise EpisodeError(
            f"The episode '{entry.name}' is not one of the tabletop's (its seed is missing), so the tabletop cannot "
            "start from it; leave --world tabletop out."
        )
    behind = commanded_poses(episode)[1 : 1 + beginning.step]
    return _Job(entry.task, int(str(extra["seed"])), str(extra["variant"]), entry.instruction, behind, tuple(seeds))


def _run(
    config: PolicyConfig, weights: dict[str, NDArray[Any]], noise: ChunkNoise, temperature: float, job: _Job
) -> Practice:
    """The rollouts of a job, in a process of the pool."""
    torch.set_num_threads(1)  # the processes share the cores
    policy = SmallPolicy(config)
    policy.noise = noise
    policy.network.load_state_dict({name: torch.from_numpy(np.asarray(tensor)) for name, tensor in weights.items()})
    return join([_rollout(policy, job, temperature, torch.Generator().manual_seed(seed)) for seed in job.seeds])


@torch.no_grad()
def _rollout(policy: SmallPolicy, job: _Job, temperature: float, generator: torch.Generator) -> Practice:
    from wvl_ros.worlds.tabletop import TabletopWorld

    config, key = policy.config, (job.task, policy.config.execute_steps)
    if key not in _worlds:
        _worlds[key] = TabletopWorld(job.task, image_stride=config.execute_steps)  # seen only where it decides
    world = _worlds[key]
    scene = {"task": job.task, "variant": job.variant, "instruction": job.instruction}
    observation, info = world.reset(seed=job.seed, options=scene)
    limit = min(world.max_steps, STEPS.get(job.task, world.max_steps))
    parts: list[Practice] = []
    ended, success = False, False
    for pose in job.behind:
        observation, _, terminated, _, info = world.step(pose)
        success = ended = success or terminated
    step = len(job.behind)
    while not parts or (not ended and step < limit):
        inputs = policy.network.located(policy.inputs([observation], [job.instruction]))
        actions, log_probs = choose(policy, inputs, temperature, generator)
        poses = droid.convert_chunk(
            actions[0].clamp(-1, 1).double().numpy(), policy.action_space, world.action_space_name,
            observation["joint_position"], np.asarray(info["commanded_pose"], float)[:6],
        )  # fmt: skip
        counts = torch.zeros(1, config.chunk_size, dtype=torch.bool)
        for i in range(min(config.execute_steps, limit - step)):
            counts[0, i] = True
            observation, _, terminated, truncated, info = world.step(poses[i])
            step += 1
            success, ended = success or terminated, terminated or truncated
            if ended:
                break
        decision = (inputs.images, inputs.state, kept_places(inputs), actions, log_probs, counts)
        images, state, places, actions, log_probs, counts = (part[:, None] for part in decision)
        ending = torch.tensor([success])
        parts.append(Practice(images, state, places, inputs.words, actions, log_probs, counts, ending, ending.float()))
    columns = {name: torch.cat([getattr(part, name) for part in parts], 1) for name in TIMED}
    return replace(parts[-1], **columns)
