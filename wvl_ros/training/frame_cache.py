"""Episodes decoded once for the world model: frames as patches in a memory-mapped file, and the numbers of every
step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wvl_ros.errors import EpisodeError
from wvl_ros.sans import cache as decoded
from wvl_ros.sans.episode import Episode
from wvl_ros.sans.episodes import EpisodeEntry
from wvl_ros.training import things
from wvl_ros.world_model import patches
from wvl_ros.world_model.kinematics import Kinematics
from wvl_ros.worlds import droid
from wvl_ros.worlds.imagined_start import is_calibrated
from wvl_ros.worlds.recorded import commanded_poses

_KINEMATICS, _ACTION = 39, 7
_HELD_OUT = 10  # every so many
COLUMNS = _KINEMATICS + _ACTION + 1 + things.COLUMNS
KINDS = ("success", "near_success", "failure")  # outcomes that say whether an episode succeeded


@dataclass
class FrameCache:
    """Episodes as the world model trains on them; frame j of an episode is at its step 3 j.

    Attributes:
        frames: uint8 memory map (F, G, G, C), all episodes one after another.
        kinematics: float32 (S, 39) of every step. actions: float32 (S, 7), row s leads from step s to s + 1 (none at an
            end).
        rewards: float32 (S,), 1 where the step's observation is a success state.
        frame_start, frame_count, step_start, step_count: int64 (E,) of every episode.
        instructions, outcomes, tasks, sources: E strings. calibrated: float32 (E,), 1 for episodes of the calibrated
            rig.
        things: float32 (S, 50), see `things.pack`.
        fingerprint: changes with the episodes and their labels.
    """

    frames: NDArray[np.uint8] | StackedFrames
    kinematics: Tensor
    actions: Tensor
    rewards: Tensor
    things: Tensor
    frame_start: Tensor
    frame_count: Tensor
    step_start: Tensor
    step_count: Tensor
    instructions: list[str]
    outcomes: list[str]
    tasks: list[str]
    sources: list[str]
    calibrated: Tensor
    actions_per_frame: int
    fingerprint: str

    def __len__(self) -> int:
        """Number of episodes."""
        return len(self.frame_start)

    def frame(self, episode: Tensor, index: Tensor) -> Tensor:
        """Frames (B, C, G, G) float in -1..1 of episodes (B,) at frame indices (B,)."""
        return patches.to_tensor(self.frames[(self.frame_start[episode] + index).numpy()])

    def step(self, episode: Tensor, index: Tensor) -> Tensor:
        """Row numbers (B,) in the arrays by step, of frame indices (B,)."""
        return self.step_start[episode] + index * self.actions_per_frame

    def chunk(self, episode: Tensor, index: Tensor) -> Tensor:
        """The actions (B, K, 7) that lead from a frame to the next."""
        return self.actions[self.step(episode, index)[:, None] + torch.arange(self.actions_per_frame)]

    def things_at(self, episode: Tensor, step: Tensor) -> Tensor:
        """The packed `Things` (B, 100) of episodes (B,) at row numbers (B,) of steps; none of those that are not
        calibrated.
        """
        before = torch.maximum(step - 1, self.step_start[episode])
        found = things.things_at(self.things[before], self.things[step])
        return found._replace(there=found.there * (self.calibrated[episode] != 0)[:, None]).pack()

    @property
    def held_out(self) -> Tensor:
        """(E,) bool: a tenth of the episodes, which what is fitted beforehand reports on, and their mirror images
        (`mirror.with_mirror_images` keeps the order).
        """
        number = torch.arange(len(self))
        images = self.calibrated < 0
        number[images] = number[self.calibrated > 0][: int(images.sum())]
        return number % _HELD_OUT == _HELD_OUT - 1

    @property
    def tells_things(self) -> Tensor:
        """(E,) bool: of the calibrated rig, and it is known where its things were."""
        return (self.calibrated != 0) & ~self.things[self.step_start].isnan().all(1)

    @property
    def labelled(self) -> Tensor:
        """(E,) float32: 1 where it is known whether the episode succeeded; the rewards of others mean nothing."""
        return torch.tensor([float(outcome in KINDS) for outcome in self.outcomes])

    def select(self, episodes: list[int]) -> FrameCache:
        """Some of the episodes; the frames and numbers stay where they are."""
        rows = torch.tensor(episodes, dtype=torch.long)

        def some(texts: list[str]) -> list[str]:
            return [texts[i] for i in episodes]

        return replace(
            self,
            frame_start=self.frame_start[rows],
            frame_count=self.frame_count[rows],
            step_start=self.step_start[rows],
            step_count=self.step_count[rows],
            calibrated=self.calibrated[rows],
            instructions=some(self.instructions),
            outcomes=some(self.outcomes),
            tasks=some(self.tasks),
            sources=some(self.sources),
            fingerprint=_digest(self.fingerprint, str(episodes)),
        )


class StackedFrames:
    """The frames of several caches as if they were one array (F, G, G, C)."""

    def __init__(self, parts: list[NDArray[np.uint8] | StackedFrames]) -> None:
        self._parts = parts
        self._ends = np.cumsum([part.shape[0] for part in parts])
        self.shape: tuple[int, ...] = (int(self._ends[-1]), *parts[0].shape[1:])

    def __getitem__(self, rows: NDArray[np.int64] | slice) -> NDArray[np.uint8]:
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(self.shape[0]))
        result = np.empty((len(rows), *self.shape[1:]), np.uint8)
        which = np.searchsorted(self._ends, rows, side="right")
        for number, part in enumerate(self._parts):
            own = which == number
            result[own] = part[rows[own] - (self._ends[number] - part.shape[0])]
        return result


def join(first: FrameCache, second: FrameCache) -> FrameCache:
    """The episodes of two caches, the first one's first."""
    if first.frames.shape[1:] != second.frames.shape[1:]:
        raise ValueError(f"frames of {first.frames.shape[1:]} and {second.frames.shape[1:]}")
    return replace(
        join_steps(first, second),
        frames=StackedFrames([first.frames, second.frames]),
        frame_start=torch.cat([first.frame_start, second.frame_start + first.frames.shape[0]]),
    )


def join_steps(first: FrameCache, second: FrameCache) -> FrameCache:
    """The same, with the frames of the first one alone: of the others only the steps may be asked for."""
    return replace(
        first,
        kinematics=torch.cat([first.kinematics, second.kinematics]),
        actions=torch.cat([first.actions, second.actions]),
        rewards=torch.cat([first.rewards, second.rewards]),
        things=torch.cat([first.things, second.things]),
        frame_start=torch.cat([first.frame_start, torch.zeros_like(second.frame_start)]),
        frame_count=torch.cat([first.frame_count, second.frame_count]),
        step_start=torch.cat([first.step_start, second.step_start + len(first.rewards)]),
        step_count=torch.cat([first.step_count, second.step_count]),
        calibrated=torch.cat([first.calibrated, second.calibrated]),
        instructions=first.instructions + second.instructions,
        outcomes=first.outcomes + second.outcomes,
        tasks=first.tasks + second.tasks,
        sources=first.sources + second.sources,
        fingerprint=_digest(first.fingerprint, second.fingerprint),
    )


def open_cache(
    path: Path | str, *, size: int, patch: int, actions_per_frame: int, rig: str, limit: int | None = None
) -> FrameCache:
    """The cache of a SANS dataset or of a folder of episode files; episodes it lacks are decoded first.

    Args:
        size, patch: pixels of a view and of a patch, as the model has them.
        actions_per_frame: control steps between frames. rig: where the calibrated cameras are; see `is_calibrated`.
        limit: take only so many episodes, evenly over all.

    Raises:
        EpisodeError: there are no episodes, or one of them lacks a camera or images at the model's steps, has images of
            several sizes, or was recorded at another rate.
    """

    def frames(entry: EpisodeEntry) -> Iterator[NDArray[np.uint8]]:
        check_stride(entry.episode_id or entry.name, entry.image_stride, actions_per_frame)
        every, start = actions_per_frame // entry.image_stride, 0  # of images
        for block in entry.blocks(droid.CAMERAS):
            check_sizes(entry.episode_id or entry.name, {name: stack.shape[1:3] for name, stack in block.items()})
            views = [patches.resize(block[camera][-start % every :: every], size, size) for camera in droid.CAMERAS]
            yield patches.to_patches(np.stack(views, 1), patch)
            start += len(block[droid.CAMERAS[0]])

    grid = size // patch
    name = f"patches5_{size}_{patch}_every{actions_per_frame}_{rig or 'none'}"
    recipe = _recipe(name, (grid, grid, 3 * patches.VIEWS * patch * patch), frames, rig)
    return arrange(decoded.open_cache(path, recipe, limit=limit), actions_per_frame)


def open_steps(path: Path | str, *, actions_per_frame: int, rig: str) -> FrameCache:
    """Episodes of which only the numbers of their steps are kept: how things move is learned without pictures.

    Their frames are one value each that means nothing; `wvl collect --size 16 --stride 1000` makes such in little time.

    Raises:
        EpisodeError: there are no episodes, or one was recorded at another rate.
    """
    recipe = _recipe(f"steps1_{rig or 'none'}", (1,), lambda _: iter([np.zeros((1, 1), np.uint8)]), rig)
    return arrange(decoded.open_cache(path, recipe), actions_per_frame)


def _recipe(
    name: str, frame_shape: tuple[int, ...], frames: Callable[[EpisodeEntry], Iterator[NDArray[np.uint8]]], rig: str
) -> decoded.Recipe:
    return decoded.Recipe(
        name=name,
        frame_shape=frame_shape,
        columns=COLUMNS,
        dtype=np.float32,
        frames=frames,
        numbers=episode_numbers,
        facts=lambda episode: {"calibrated": is_calibrated(episode, rig)},
    )


def episode_arrays(episode: Episode) -> tuple[Tensor, Tensor]:
    """Packed kinematics (N, 39) of all steps and the actions (N - 1, 7) as commanded poses, float32."""
    commands = torch.from_numpy(commanded_poses(episode))
    poses, grippers = torch.from_numpy(episode.cartesian_position), torch.from_numpy(episode.gripper_position)
    return Kinematics.recorded(poses, grippers, commands).pack().float(), commands[1:].float()


def episode_frames(episode: Episode, size: int, patch: int, every: int) -> NDArray[np.uint8]:
    """Frames (M, G, G, C) uint8 of an episode at steps 0, every, 2 every, ...

    Raises:
        EpisodeError: a camera is missing, or images were not taken at these steps.
    """
    missing = [camera for camera in droid.CAMERAS if camera not in episode.images]
    if missing:
        raise EpisodeError(
            f"Episode '{episode.episode_id}' lacks the camera '{missing[0]}'; the world model needs all three."
        )
    check_stride(episode.episode_id, episode.image_stride, every)
    rows = slice(None, None, every // episode.image_stride)
    views = [patches.resize(episode.images[camera][rows], size, size) for camera in droid.CAMERAS]
    return patches.to_patches(np.stack(views, 1), patch)


def check_stride(name: str, stride: int, every: int) -> None:
    """Raises an EpisodeError when an image each `stride` steps is not one at each `every`-th."""
    if every % stride:
        raise EpisodeError(f"Episode '{name}' has an image each {stride} steps, not each {every} as needed.")


def check_sizes(name: str, sizes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises an EpisodeError when the cameras' images (height, width) differ in size."""
    if len(set(sizes.values())) > 1:
        told = ", ".join(f"{camera} {size[1]}x{size[0]}" for camera, size in sizes.items())
        raise EpisodeError(
            f"The cameras of episode '{name}' differ in size ({told}); record or convert all at one size."
        )


def check_rate(episode: Episode) -> None:
    """Raises an EpisodeError when an episode was not recorded at DROID's rate."""
    if abs(episode.fps - droid.CONTROL_HZ) > 0.01:
        raise EpisodeError(
            f"Episode '{episode.episode_id}' was recorded at {episode.fps:g} Hz, but the world model moves at "
            f"{droid.CONTROL_HZ} Hz; convert it from its bag again at that rate."
        )


def _digest(*texts: str) -> str:
    return hashlib.sha256("|".join(texts).encode()).hexdigest()[:16]


def episode_numbers(episode: Episode) -> NDArray[np.float32]:
    """Kinematics, action, reward and things of every step (N, COLUMNS); the last step's action is the one before it
    again.
    """
    check_rate(episode)
    kinematics, actions = episode_arrays(episode)
    last = actions[-1:] if len(actions) else torch.zeros(1, _ACTION)
    rewards = np.concatenate([np.zeros(1, np.float32), episode.reward])[:, None]
    known = things.pack(_objects(episode, len(kinematics)), len(kinematics))
    return np.hstack([kinematics.numpy(), torch.cat([actions, last]).numpy(), rewards, known])


def _objects(episode: Episode, steps: int) -> NDArray[np.float64] | None:
    """Where things were at every step (N, n, 5), if the episode says so."""
    told = episode.extra.get("objects")
    if told is None:
        return None
    try:
        poses = np.asarray(told, float)
        if poses.size == 0 or (poses.ndim == 3 and (len(poses), poses.shape[2]) == (steps, things.POSE)):
            return poses
        shape = str(poses.shape)
    except (TypeError, ValueError):  # not of numbers, or rows of several lengths
        shape = "an uneven list"
    raise EpisodeError(
        f"Episode '{episode.episode_id}' says where its things were in `objects` of {shape}, but that should be "
        f"({steps}, n, {things.POSE}): x, y, z in m, yaw in rad and half of the width in m, at each step."
    )


def arrange(cache: decoded.Cache, every: int) -> FrameCache:
    """The numbers of all episodes in memory, one after another; the frames stay where they are."""
    counts = cache.step_count
    rows = np.concatenate([np.arange(start, start + n) for start, n in zip(cache.step_start, counts, strict=True)])
    numbers = torch.from_numpy(np.asarray(cache.numbers[rows], np.float32))
    parts = numbers.split([_KINEMATICS, _ACTION, 1, things.COLUMNS], 1)
    kinematics, actions, rewards, known = (part.contiguous() for part in parts)
    return FrameCache(
        frames=cache.frames,
        kinematics=kinematics,
        actions=actions,
        rewards=rewards[:, 0],
        things=known,
        frame_start=torch.from_numpy(cache.frame_start),
        frame_count=torch.from_numpy(cache.frame_count),
        step_start=torch.from_numpy(np.cumsum(counts) - counts),
        step_count=torch.from_numpy(counts),
        instructions=[entry.instruction for entry in cache.entries],
        outcomes=[entry.outcome for entry in cache.entries],
        tasks=[entry.task for entry in cache.entries],
        sources=[entry.source for entry in cache.entries],
        calibrated=torch.tensor([float(facts["calibrated"]) for facts in cache.facts]),
        actions_per_frame=every,
        fingerprint=cache.fingerprint,
    )
