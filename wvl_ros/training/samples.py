"""What a policy learns from episodes: at each decision the chunk to output and the key places of the task.

Of disturbed demonstrations (see `demonstrations`) every state teaches, by its label; of all other episodes only the
successful ones, by their labels where they have some, or else by their own actions (a person's, on a robot).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
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
from wvl_ros.sans.episodes import EpisodeEntry, FileEntry, list_episodes
from wvl_ros.worlds import droid

Array = NDArray[np.float64]

_WORK_HEIGHT = 0.02  # m above an episode's lowest point: where a tool that never opens or closes is at work
_SHORTEST_WORK = 4  # control steps
_STATE = ("cartesian_position", "gripper_position")


def read_episodes(sources: Sequence[Path]) -> Iterator[Episode]:
    """Episodes that can teach a policy, of SANS datasets and of folders of episode files.

    Raises:
        EpisodeError: no such dataset or folder, or nothing in them to learn from.
    """
    entries = [entry for source in sources for entry in list_episodes(source)]
    useful = 0
    for entry in tqdm(entries, desc="episodes", disable=None):
        if _teaches(entry):
            useful += 1
            yield entry.load()
    if not useful:
        names = ", ".join(str(path) for path in sources)
        raise EpisodeError(
            f"None of the {len(entries)} episodes in '{names}' is a success; a policy needs some to learn from."
        )


def _teaches(entry: EpisodeEntry) -> bool:
    """Whether an episode can teach, without its images: failures are many and large."""
    if isinstance(entry, FileEntry):
        return entry.outcome == "success" or entry.disturbed
    return entry.outcome == "success" or "disturbed" in entry.load(images=False).extra


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
    lowest height. It begins where the hand is low: one that closes higher up closes to push. Each step looks at the
    beginning of the stretch it is in or that comes next, and at the end of the last one: earlier ones are where
    something slipped. All of it can be read from a real robot's recording. NaN where there is no such stretch, and for
    where one began once it has: what is held or pushed lies there no more.
    """
    height = episode.cartesian_position[:-1, 2]
    closed = episode.action[:, -1] >= 0.5
    if closed.all() or not closed.any():
        closed = height < height.min() + _WORK_HEIGHT
    edges = np.flatnonzero(np.diff(np.concatenate([[0], closed.astype(int), [0]])))
    stretches = [
        (a + int(np.argmax(height[a:b] < height[a:b].min() + _WORK_HEIGHT)), b) for a, b in edges.reshape(-1, 2)
    ]
    stretches = [(a, b) for a, b in stretches if b - a >= _SHORTEST_WORK]
    steps = decision_steps(episode)
    places = np.full((len(steps), PLACE_DIM), np.nan)
    for row, step in zip(places, steps, strict=True):
        if stretches:
            start = next((a for a, b in stretches if b > step), stretches[-1][0])
            row[3:] = episode.cartesian_position[stretches[-1][1], :3]
            if step <= start:
                row[:3] = episode.cartesian_position[start, :3]
    return places


@dataclass
class Samples:
    """All decisions of a set of demonstrations.

    Attributes:
        images: uint8 (N, cameras, 3, S, S). state: float32 (N, 10).
        actions: float32 (N, T, 7), see `chunk_targets`. places: float32 (N, 6), see `key_places`.
        instruction, task: int64 (N,) index into `instructions` and `tasks`. episode: int64 (N,), which one it is of, in
            the order they came.
    """

    images: Tensor
    state: Tensor
    actions: Tensor
    places: Tensor
    instruction: NDArray[np.int64]
    task: NDArray[np.int64]
    episode: NDArray[np.int64]
    instructions: tuple[str, ...]
    tasks: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.actions)

    def inputs(self, rows: NDArray[np.int64], tokenizer: WordTokenizer) -> Inputs:
        """The network's input for some rows."""
        words = tokenizer.encode([self.instructions[i] for i in self.instruction[rows]])
        return Inputs(self.images[rows], self.state[rows], torch.from_numpy(words))


def even_chances(samples: Samples) -> NDArray[np.float64]:
    """(N,) with which to draw samples so that every task comes equally often; they add up to 1."""
    counts = np.bincount(samples.task, minlength=len(samples.tasks))
    return 1.0 / (len(samples.tasks) * counts[samples.task])


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
    numbers: list[int] = []
    for number, episode in enumerate(episodes):
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
        numbers += [number] * len(steps)
    texts, instruction = np.unique(instructions, return_inverse=True)
    names, task = np.unique(tasks, return_inverse=True)
    return Samples(
        images=torch.cat(images),
        state=torch.from_numpy(np.stack(states)),
        actions=torch.from_numpy(np.concatenate(actions)).float(),
        places=torch.from_numpy(np.concatenate(places)).float(),
        instruction=instruction,
        task=task,
        episode=np.array(numbers),
        instructions=tuple(str(text) for text in texts),
        tasks=tuple(str(name) for name in names),
    )
