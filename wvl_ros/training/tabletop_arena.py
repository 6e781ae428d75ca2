"""Practice in the tabletop itself: what imagination would give if it were perfect, and a baseline for it."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wvl_ros.errors import EpisodeError
from wvl_ros.policies.network import PolicyConfig
from wvl_ros.policies.noise import ChunkNoise
from wvl_ros.policies.small import SmallPolicy
from wvl_ros.sans.collect import STEPS
from wvl_ros.training.arena import Beginning
from wvl_ros.training.practice import Practice, choose, join
from wvl_ros.worlds import droid
from wvl_ros.worlds.recorded import commanded_poses

# Kept by each process, one of each kind of scene: to compile another and open its renderer costs more than a rollout.
_worlds: dict[tuple[str, str, int, int], Any] = {}


@dataclass(frozen=True, eq=False)
class _Job:
    """The rollouts from one beginning: of which scene, after which actions (N, 7), how many, with which seed of the
    policy's sampling.
    """

    task: str
    seed: int
    variant: str
    instruction: str
    behind: NDArray[np.float64]
    count: int
    seed_of_policy: int


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
        """See `Arena.practise`; `generator` gives each group a seed of its own, `seeds` say nothing here.

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
                _run, policy.config, weights, policy.noise, temperature, _job(beginnings[g[0]], len(g), drawn[g[0]])
            )
            for g in groups
        ]
        return join([future.result() for future in futures])

    def doubted(self) -> list[bool]:
        """Nobody doubts the truth."""
        return []


def _job(beginning: Beginning, count: int, seed: int) -> _Job:
    entry = beginning.entry
    episode = entry.load(images=False)
    extra = episode.extra
    if "seed" not in extra or "variant" not in extra:
        raise EpisodeError(
            f"The episode '{entry.name}' is not one of the tabletop's (its seed is missing), so the tabletop cannot "
            "start from it; leave --world tabletop out."
        )
    behind = commanded_poses(episode)[1 : 1 + beginning.step]
    return _Job(
        entry.task,
        int(str(extra["seed"])),
        str(extra["variant"]),
        entry.instruction,
        behind,
        count,
        seed,
    )


def _run(
    config: PolicyConfig, weights: dict[str, NDArray[Any]], noise: ChunkNoise, temperature: float, job: _Job
) -> Practice:
    """The rollouts of a job, in a process of the pool."""
    torch.set_num_threads(1)  # the processes share the cores
    policy = SmallPolicy(config)
    policy.noise = noise
    policy.network.load_state_dict({name: torch.from_numpy(np.asarray(tensor)) for name, tensor in weights.items()})
    return _rollouts(policy, job, temperature)


@torch.no_grad()
def _rollouts(policy: SmallPolicy, job: _Job, temperature: float) -> Practice:
    """All rollouts of a job in step with each other, so that the policy sees them as one batch."""
    runs = [_Rollout(policy, job, number) for number in range(job.count)]
    generator = torch.Generator().manual_seed(job.seed_of_policy)
    decisions: list[tuple[Tensor, ...]] = []
    while any(run.active for run in runs):
        inputs = policy.inputs([run.observation for run in runs], [job.instruction] * len(runs))
        actions, log_probs = choose(policy, inputs, temperature, generator)
        counts = torch.stack([run.execute(chunk) for run, chunk in zip(runs, actions, strict=True)])
        decisions.append((inputs.images, inputs.state, actions, log_probs, counts))
    images, state, actions, log_probs, counts = (torch.stack(column, 1) for column in zip(*decisions, strict=True))
    success = torch.tensor([run.success for run in runs])
    return Practice(images, state, inputs.words, actions, log_probs, counts, success, success.float())


class _Rollout:
    """One rollout in a world of its own."""

    def __init__(self, policy: SmallPolicy, job: _Job, number: int) -> None:
        from wvl_ros.worlds.tabletop import TabletopWorld

        self.config, self.space = policy.config, policy.action_space
        key = (job.task, job.variant, self.config.execute_steps, number)
        if key not in _worlds:
            _worlds[key] = TabletopWorld(job.task, image_stride=self.config.execute_steps)  # seen only where it decides
        self.world = _worlds[key]
        scene = {"task": job.task, "variant": job.variant, "instruction": job.instruction}
        self.observation, self.info = self.world.reset(seed=job.seed, options=scene)
        self.limit = min(self.world.max_steps, STEPS.get(job.task, self.world.max_steps))
        self.step, self.success, self.active = 0, False, True
        for pose in job.behind:
            self._move(pose)
        self.active = True  # it looks once wherever it begins

    def execute(self, chunk: Tensor) -> Tensor:
        """Acts by a chunk (T, 7); gives which of its actions (T,) it came to."""
        counts = torch.zeros(self.config.chunk_size, dtype=torch.bool)
        if not self.active:
            return counts
        poses = droid.convert_chunk(
            chunk.clamp(-1, 1).double().numpy(), self.space, self.world.action_space_name,
            self.observation["joint_position"], np.asarray(self.info["commanded_pose"], float)[:6],
        )  # fmt: skip
        for i in range(min(self.config.execute_steps, max(1, self.limit - self.step))):
            counts[i] = True
            self._move(poses[i])
            if not self.active:
                break
        return counts

    def _move(self, pose: NDArray[np.float64]) -> None:
        self.observation, _, terminated, truncated, self.info = self.world.step(pose)
        self.step += 1
        self.success = self.success or terminated
        self.active = not (self.success or truncated or self.step >= self.limit)
