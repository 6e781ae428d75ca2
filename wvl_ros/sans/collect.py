"""Collects tabletop episodes of every outcome: by scripted experts of every skill, or by a policy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wvl_ros.policies.broker import ChunkBroker
from wvl_ros.policies.interface import Policy
from wvl_ros.sans.episode import Episode
from wvl_ros.worlds.droid import CAMERAS
from wvl_ros.worlds.experts import Expert, Skill, Wanderer, make_expert
from wvl_ros.worlds.interface import Observation
from wvl_ros.worlds.tabletop import TabletopWorld
from wvl_ros.worlds.tasks import TASKS, Mistaken

MODES = ("good", "misplace", "early_release", "hold", "misgrasp", "noisy", "wander")
STEPS = {"pick_place": 60, "push": 60, "stack": 60, "sweep": 165}  # of an episode
_SHARES = (0.36, 0.22, 0.07, 0.03, 0.18, 0.09, 0.05)


def draw_skill(rng: np.random.Generator) -> tuple[str, Skill]:
    """One of `MODES` and its knobs: about a third successes, a third near-successes, a third plain failures."""
    mode = str(rng.choice(MODES, p=_SHARES))
    speed = float(rng.uniform(0.35, 0.6))
    noise, drift = float(rng.uniform(0.0, 0.1)), float(rng.choice([0.0, 0.05, 0.1]))
    if mode == "good":
        return mode, Skill(noise, drift / 2, 0.004 * rng.random(), 0.02 * rng.random(), speed=speed)
    if mode == "misplace":
        return mode, Skill(noise, drift, 0.004, float(rng.uniform(0.03, 0.13)), speed=speed)
    if mode == "early_release":
        return mode, Skill(noise, drift, 0.004, 0.02 * rng.random(), release=int(rng.integers(12, 34)), speed=speed)
    if mode == "hold":
        return mode, Skill(noise, drift, 0.004, hold=True, speed=speed)
    if mode == "misgrasp":
        return mode, Skill(noise, drift, float(rng.uniform(0.012, 0.035)), 0.02 * rng.random(), speed=speed)
    return mode, Skill(float(rng.uniform(0.25, 0.6)), 0.15, 0.01, 0.03, speed=speed)


def collect_episode(
    world: TabletopWorld, task: str, seed: int, skill: Skill | None = None, steps: int = 60, mode: str = ""
) -> Episode:
    """Runs a scripted expert for `steps` control steps and keeps everything.

    Args:
        world: the tabletop; its `image_stride` becomes the episode's.
        task, seed: what to reset it to. The same seed gives the same episode.
        skill: the expert's knobs; None draws a mode of `MODES` from the seed.
        steps: length. The episode goes on after a success, so that the world model sees what success looks like.
        mode: recorded in `extra` when the skill is given.
    """
    start = world.reset(seed=seed, options={"task": task})
    if skill is None:
        mode, skill = draw_skill(np.random.default_rng([seed, list(TASKS).index(task)]))
        if task == "sweep":  # seven balls take their time
            skill = replace(skill, speed=skill.speed + 0.15, noise=skill.noise / 2, goal_bias=skill.goal_bias / 2)
    expert: Expert = Wanderer(world, skill, seed) if mode == "wander" else make_expert(world, skill, seed)
    labels = []

    def act(observation: Observation, info: dict[str, Any]) -> NDArray[np.float64]:
        action = expert.act()
        labels.append(expert.label.copy())
        return action

    episode = _play(world, start, act, task, seed, steps)
    facts = {"mode": mode, "label": np.round(labels, 5).tolist()}
    return replace(episode, source="expert/tabletop", extra=episode.extra | facts)


def collect_rollout(world: TabletopWorld, task: str, seed: int, policy: Policy, steps: int = 60) -> Episode:
    """Runs a policy for `steps` control steps and keeps everything, as `collect_episode` does of an expert."""
    observation, info = world.reset(seed=seed, options={"task": task})
    broker = ChunkBroker(policy)
    broker.reset(seed)

    def act(observation: Observation, info: dict[str, Any]) -> NDArray[np.float64]:
        return broker.action(observation, info["instruction"], info["commanded_pose"])

    episode = _play(world, (observation, info), act, task, seed, steps)
    return replace(episode, source="policy/tabletop", policy=policy.name)


def collect_mistaken(
    world: TabletopWorld, task: str, seed: int, about: Mistaken, policy: Policy | None = None, steps: int = 60
) -> Episode:
    """What an expert, or a policy, does who is mistaken about the scene, done in the true one, and kept.

    Recorded actions betray how their episode goes: who misses what he sees hesitates or tries again. These never do,
    and whether they succeed is a matter of where things lie alone, or of what the instruction names.

    Args:
        world: its `image_stride` becomes the episode's. task, seed: as for `collect_episode`.
        about: 'places', or 'things' (then every scene holds two objects or two goals); see `tasks.mistaken`.
    """
    options: dict[str, Any] = {"task": task}
    if about == "things":
        variants = [variant for variant in TASKS[task].variants if variant != "single"]
        options["variant"] = variants[seed % len(variants)]
    actions = iter(_plan(world, task, seed, options | {"mistaken": about}, policy, steps))
    start = world.reset(seed=seed, options=options)
    episode = _play(world, start, lambda *_: next(actions), task, seed, steps)
    source, name = ("expert/tabletop", "") if policy is None else ("policy/tabletop", policy.name)
    return replace(episode, source=source, policy=name, extra=episode.extra | {"mode": f"mistaken {about}"})


def _plan(
    world: TabletopWorld, task: str, seed: int, options: dict[str, Any], policy: Policy | None, steps: int
) -> list[NDArray[np.float64]]:
    """The poses that somebody commands who is mistaken about the scene."""
    observation, info = world.reset(seed=seed, options=options)
    if policy is not None:
        broker = ChunkBroker(policy)
        broker.reset(seed)
    else:
        rng = np.random.default_rng([seed, list(TASKS).index(task)])
        skill = Skill(float(rng.uniform(0.0, 0.1)), speed=float(rng.uniform(0.35, 0.6)))
        expert = make_expert(world, skill, seed)
    poses, stride = [], world.image_stride
    try:
        if policy is None:
            world.image_stride = steps + 1  # an expert sees no images
        for _ in range(steps):
            if policy is None:
                action = expert.act()
            else:
                action = broker.action(observation, info["instruction"], info["commanded_pose"])
            observation, _, _, _, info = world.step(action)
            poses.append(info["commanded_pose"])
    finally:
        world.image_stride = stride
    return poses


def _play(
    world: TabletopWorld,
    start: tuple[Observation, dict[str, Any]],
    act: Callable[[Observation, dict[str, Any]], NDArray[np.float64]],
    task: str,
    seed: int,
    steps: int,
) -> Episode:
    observation, info = start
    stride = world.image_stride
    images: dict[str, list[np.ndarray]] = {camera: [observation[camera]] for camera in CAMERAS}
    states = [(observation["joint_position"], observation["cartesian_position"], observation["gripper_position"])]
    commanded_start = info["commanded_pose"]
    actions, rewards, objects = [], [], [world.object_poses()]
    outcome = ""
    for step in range(1, steps + 1):
        observation, reward, terminated, _, info = world.step(act(observation, info))
        if terminated:
            outcome = "success"
        actions.append(info["commanded_pose"])
        rewards.append(reward)
        objects.append(world.object_poses())
        states.append(
            (observation["joint_position"], observation["cartesian_position"], observation["gripper_position"])
        )
        if step % stride == 0:
            for camera in CAMERAS:
                images[camera].append(observation[camera])
    joints, poses, grippers = (np.stack(column) for column in zip(*states, strict=True))
    return Episode(
        images={camera: np.stack(stack) for camera, stack in images.items()},
        joint_position=joints,
        cartesian_position=poses,
        gripper_position=grippers,
        action=np.stack(actions),
        reward=np.array(rewards, np.float32),
        task=task,
        instruction=info["instruction"],
        outcome=outcome or ("near_success" if world.near else "failure"),
        outcome_source="world",
        episode_id=f"{task}_{seed:07d}",
        image_stride=stride,
        commanded_start=commanded_start,
        extra={"seed": seed, "variant": info["variant"], "objects": np.round(objects, 4).tolist()},
    )


@dataclass(frozen=True)
class Job:
    """One episode to collect, in any process; `run` gives the same each time.

    Attributes:
        size: px, height and width of its images. stride: control steps an image.
        good: by a flawless expert. policy: folder of the checkpoint that plays instead of an expert.
        temperature: the policy's is drawn from 0 to this, by the seed; at 0 it deploys its mean.
        mistaken: about what the player is, see `collect_mistaken`.
    """

    task: str
    seed: int
    size: int = 128
    stride: int = 3
    good: bool = False
    policy: str = ""
    temperature: float = 0.0
    mistaken: Mistaken = ""

    @property
    def fingerprint(self) -> str:
        """Its key in a dataset."""
        player = f"{Path(self.policy).name} {self.temperature:g}" if self.policy else "good" if self.good else "any"
        player += f" mistaken {self.mistaken}" if self.mistaken else ""
        return f"collect {self.task} {self.seed} {self.size} {self.stride} {player}"

    def run(self) -> Episode:
        """Collects it; worlds and policies are made once a process."""
        shape = (self.size, self.stride)
        if shape not in _worlds:
            _worlds[shape] = TabletopWorld(self.task, self.size, self.size, image_stride=self.stride)
        return self._collect(_worlds[shape])

    def _collect(self, world: TabletopWorld) -> Episode:
        if self.mistaken:
            policy = self._policy() if self.policy else None
            return collect_mistaken(world, self.task, self.seed, self.mistaken, policy, STEPS[self.task])
        if self.policy:
            return collect_rollout(world, self.task, self.seed, self._policy(), STEPS[self.task])
        skill, mode = (Skill(), "good") if self.good else (None, "")
        return collect_episode(world, self.task, self.seed, skill, STEPS[self.task], mode)

    def _policy(self) -> Policy:
        import torch

        from wvl_ros.policies.small import SmallPolicy

        if self.policy not in _policies:
            torch.set_num_threads(1)  # the processes share the cores
            _policies[self.policy] = SmallPolicy.from_pretrained(self.policy)
        policy = _policies[self.policy]
        policy.temperature = float(np.random.default_rng([self.seed, len(self.task)]).uniform(0.0, self.temperature))
        policy.sample = policy.temperature > 0
        return policy


@dataclass(frozen=True, eq=False)
class Imagined(Job):
    """What a policy did in imagination, to be done in the tabletop, whatever is seen there.

    Attributes:
        actions: (N, 7) commanded poses. world_model: name of the one it acted in.
        success: whether the policy succeeded there. chance: of what the reward head was at most certain, 0 to 1.
    """

    actions: NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 7)))
    world_model: str = ""
    success: bool = False
    chance: float = 0.0

    @property
    def fingerprint(self) -> str:
        """Its key in a dataset."""
        return f"{super().fingerprint} imagined by {self.world_model}"

    def _collect(self, world: TabletopWorld) -> Episode:
        start = world.reset(seed=self.seed, options={"task": self.task})
        plan = iter(self.actions)
        episode = _play(world, start, lambda *_: next(plan), self.task, self.seed, len(self.actions))
        facts = {"imagined_success": self.success, "imagined_chance": self.chance}
        return replace(
            episode, source="policy/tabletop", policy=Path(self.policy).name, world_model=self.world_model,
            extra=episode.extra | facts,
        )  # fmt: skip


_worlds: dict[tuple[int, int], TabletopWorld] = {}
_policies: dict[str, Any] = {}
