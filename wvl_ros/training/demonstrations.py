"""Demonstrations for behaviour cloning: recorded with corrections in the tabletop, or read from any episodes.

Following DART (Laskey et al. 2017) the expert is disturbed while it acts, and its undisturbed choice is kept as the
label at every visited state, in `Episode.extra["label"]`; a clone then knows how to come back. Of all other episodes
only the successful ones teach, by their labels where they have some, or else by their own actions (a person's).
"""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from wvl_ros.errors import EpisodeError
from wvl_ros.policies.network import PLACE_DIM, Inputs, PolicyConfig
from wvl_ros.policies.small import state_vector
from wvl_ros.policies.tokenizer import WordTokenizer
from wvl_ros.policies.vision import shrink
from wvl_ros.sans.episode import Episode
from wvl_ros.worlds import droid

Array = NDArray[np.float64]
log = logging.getLogger(__name__)

FIRST_SEED = 100_000  # demonstrations use seeds from here; those from 900,000 on are for validation and evaluation
IMAGE_STRIDE = 3
_WORK_HEIGHT = 0.02  # m above an episode's lowest point: where a tool that never opens or closes is at work
_SHORTEST_WORK = 4  # control steps


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
    from wvl_ros.worlds.experts import make_expert
    from wvl_ros.worlds.tabletop import TabletopWorld

    disturbance = disturbance or Disturbance()
    world = _worlds.setdefault(task, TabletopWorld(task, image_stride=IMAGE_STRIDE))
    assert isinstance(world, TabletopWorld)
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


_worlds: dict[str, object] = {}  # one a task and process: compiling a scene costs more than an episode


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


def read_episodes(folders: Sequence[Path]) -> Iterator[Episode]:
    """Episodes of some folders (and the folders below them) that can teach a policy.

    Raises:
        EpisodeError: no such folder, or nothing in them to learn from.
    """
    folder = ", ".join(str(path) for path in folders)
    paths = [path for parent in folders for path in sorted(parent.rglob("*.safetensors"))]
    if not paths:
        raise EpisodeError(
            f"'{folder}' holds no episodes (*.safetensors); record some with --demonstrations or 'wvl collect'."
        )
    useful = 0
    for path in tqdm(paths, desc="episodes", disable=None):
        episode = Episode.load(path)
        if episode.success or "disturbed" in episode.extra:
            useful += 1
            yield episode
    if not useful:
        raise EpisodeError(
            f"None of the {len(paths)} episodes in '{folder}' is a success; a policy needs some to learn from."
        )


def decision_steps(episode: Episode) -> NDArray[np.int64]:
    """Steps (M,) of the episode that have an image and an action after them."""
    return np.arange(0, len(episode) - 1, episode.image_stride)


def chunk_targets(episode: Episode, chunk_size: int) -> Array:
    """Targets (M, chunk_size, 7) at the decision steps: velocities relative to the commanded pose, and the gripper.

    NaN stands where there is nothing to learn: after the end, and from a push on, which no policy can foresee.
    """
    pushed = episode.extra.get("disturbed", [])
    label = np.asarray(episode.extra["label"], float) if "label" in episode.extra else None
    poses = _commanded_poses(episode)
    target = poses[1:] if label is None else label
    gripper = target[:, 6] if label is not None else episode.action[:, -1]
    velocity = np.stack([droid.pose_velocity(a, b) for a, b in zip(poses[:-1, :6], target[:, :6], strict=True)])
    rows = np.column_stack([velocity.clip(-1, 1), gripper])
    rows = np.vstack([rows, np.full((chunk_size, 7), np.nan)])
    assert isinstance(pushed, list)
    rows[np.asarray(pushed, int)] = np.nan
    chunks = np.stack([rows[step : step + chunk_size] for step in decision_steps(episode)])
    blocked = np.logical_or.accumulate(np.isnan(chunks[..., 0]), axis=1)
    chunks[blocked] = np.nan
    return chunks


def _commanded_poses(episode: Episode) -> Array:
    """The commanded poses and grippers (N, 7): the one in force at the start, then one an action."""
    assert episode.commanded_start is not None
    start = episode.commanded_start[None]
    if len(episode) == 1:
        return start
    poses = droid.convert_chunk(
        episode.action, episode.action_space, "cartesian_position", episode.joint_position[0], start[0, :6]
    )
    return np.vstack([start, poses])


def key_places(episode: Episode) -> Array:
    """Where the tool goes to work and where it ends, in hindsight, at the decision steps: flange positions (M, 6) in m.

    Work is a stretch in which the gripper is commanded closed; where the gripper never changes, a stretch near the
    lowest height. Each step looks at the stretch it is in or that comes next (at the end, the last one). All of it can
    be read from a real robot's recording; NaN where there is no such stretch.
    """
    closed = episode.action[:, -1] >= 0.5
    if closed.all() or not closed.any():
        height = episode.cartesian_position[:-1, 2]
        closed = height < height.min() + _WORK_HEIGHT
    edges = np.flatnonzero(np.diff(np.concatenate([[0], closed.astype(int), [0]])))
    stretches = [(a, b) for a, b in edges.reshape(-1, 2) if b - a >= _SHORTEST_WORK]
    steps = decision_steps(episode)
    places = np.full((len(steps), PLACE_DIM), np.nan)
    for row, step in zip(places, steps, strict=True):
        if stretches:
            start, end = next(((a, b) for a, b in stretches if b > step), stretches[-1])
            row[:] = np.concatenate([episode.cartesian_position[start, :3], episode.cartesian_position[end, :3]])
    return places


@dataclass
class Samples:
    """All decisions of a set of demonstrations.

    Attributes:
        images: uint8 (N, cameras, 3, S, S). state: float32 (N, 10).
        actions: float32 (N, T, 7), see `chunk_targets`. places: float32 (N, 6), see `key_places`.
        instruction, task: int64 (N,) index into `instructions` and `tasks`.
    """

    images: Tensor
    state: Tensor
    actions: Tensor
    places: Tensor
    instruction: NDArray[np.int64]
    task: NDArray[np.int64]
    instructions: tuple[str, ...]
    tasks: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.actions)

    def inputs(self, rows: NDArray[np.int64], tokenizer: WordTokenizer) -> Inputs:
        """The network's input for some rows."""
        words = tokenizer.encode([self.instructions[i] for i in self.instruction[rows]])
        return Inputs(self.images[rows], self.state[rows], torch.from_numpy(words))


def build_samples(episodes: Iterable[Episode], config: PolicyConfig) -> Samples:
    """The decisions of episodes for a policy's cameras and chunk size.

    Raises:
        EpisodeError: an episode lacks one of the policy's cameras.
    """
    images: list[Tensor] = []
    states: list[NDArray[np.float32]] = []
    actions: list[Array] = []
    places: list[Array] = []
    instructions: list[str] = []
    tasks: list[str] = []
    for episode in episodes:
        chunks = chunk_targets(episode, config.chunk_size)
        useful = ~np.isnan(chunks[:, 0, 0])
        steps = decision_steps(episode)[useful]
        if not len(steps):
            continue
        views = []
        for camera in config.cameras:
            if camera not in episode.images:
                raise EpisodeError(
                    f"The episode '{episode.episode_id}' lacks the camera '{camera}' that the policy looks at."
                )
            views.append(shrink(list(episode.images[camera][steps // episode.image_stride]), config.image_size, camera))
        images.append(torch.stack(views, 1))
        states += [state_vector({name: getattr(episode, name)[step] for name in _STATE}) for step in steps]
        actions.append(chunks[useful])
        places.append(key_places(episode)[useful])
        instructions += [episode.instruction] * len(steps)
        tasks += [episode.task] * len(steps)
    texts, instruction = np.unique(instructions, return_inverse=True)
    names, task = np.unique(tasks, return_inverse=True)
    return Samples(
        images=torch.cat(images),
        state=torch.from_numpy(np.stack(states)),
        actions=torch.from_numpy(np.concatenate(actions)).float(),
        places=torch.from_numpy(np.concatenate(places)).float(),
        instruction=instruction,
        task=task,
        instructions=tuple(str(text) for text in texts),
        tasks=tuple(str(name) for name in names),
    )


_STATE = ("cartesian_position", "gripper_position")
