"""Windows of recorded episodes for trainers: drawn from a cache, balanced, and the same again for the same seed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wvl_ros.errors import ConfigError
from wvl_ros.sans.cache import Cache, Recipe, open_cache
from wvl_ros.sans.episode import Episode
from wvl_ros.sans.episodes import EpisodeEntry
from wvl_ros.worlds.droid import CAMERAS

_COLUMNS = {"joint_position": 7, "cartesian_position": 6, "gripper_position": 1, "command": 7, "reward": 1}
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))  # of SplitMix64
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class WindowConfig:
    """What a window is and how often each kind is drawn.

    Attributes:
        frames: T, images of a window. history: how many of them lie before the present one.
        every: control steps from a frame to the next; a multiple of every episode's image stride.
        outcome_weights: outcome -> its share, relative to the others; those not named are never drawn. By default all
            outcomes that there are, equally often, but for aborted episodes. iteration_weights: likewise of the
            improvement loop's iterations.
        natural: draw every window equally often instead, whatever its outcome and iteration.
        seed: of the draws. rank, ranks: of ranks processes, this one takes every ranks-th window.
    """

    frames: int = 16
    history: int = 4
    every: int = 3
    outcome_weights: Mapping[str, float] | None = None
    iteration_weights: Mapping[int, float] | None = None
    natural: bool = False
    seed: int = 0
    rank: int = 0
    ranks: int = 1

    def __post_init__(self) -> None:
        if self.frames < 1 or self.every < 1 or not 0 <= self.history < self.frames:
            raise ConfigError("A window needs at least one frame, fewer frames of history than frames, and every >= 1.")
        if not 0 <= self.rank < self.ranks:
            raise ConfigError(f"The rank {self.rank} is none of 0 to {self.ranks - 1}.")
        for weights in (self.outcome_weights, self.iteration_weights):
            if weights is not None and (min(weights.values(), default=0) < 0 or sum(weights.values()) <= 0):
                raise ConfigError("Weights of windows must not be negative, and one of them must be above 0.")


@dataclass(frozen=True)
class Windows:
    """B windows of T frames, `every` = K control steps apart.

    Before an episode's start its first frame is repeated (with the command in force there), after its end the last
    one; such frames are not `valid`, and actions that were never taken are not `action_valid`.

    Attributes:
        images: uint8 (B, T, cameras, H, W, 3). joint_position, cartesian_position, gripper_position: float32 (B, T, D).
        action: float32 (B, T, K, 7), the commanded poses that lead from frame t to frame t + 1.
        reward: float32 (B, T), of the frame's observation. valid: bool (B, T). action_valid: bool (B, T, K).
        episode, step: int64 (B,), which episode of the cache, and the control step of the present frame.
    """

    images: NDArray[np.uint8]
    joint_position: NDArray[np.float32]
    cartesian_position: NDArray[np.float32]
    gripper_position: NDArray[np.float32]
    action: NDArray[np.float32]
    reward: NDArray[np.float32]
    valid: NDArray[np.bool_]
    action_valid: NDArray[np.bool_]
    episode: NDArray[np.int64]
    step: NDArray[np.int64]
    instruction: list[str]
    outcome: list[str]


def window_cache(
    path: Path | str,
    *,
    height: int = 128,
    width: int = 128,
    cameras: Sequence[str] = CAMERAS,
    folder: Path | None = None,
) -> Cache:
    """The cache that windows are drawn from, of a SANS dataset or a folder of episode files.

    Raises:
        EpisodeError: see `wvl_ros.sans.cache.open_cache`.
    """
    names = hashlib.sha256("\n".join(cameras).encode()).hexdigest()[:8]

    def frames(entry: EpisodeEntry) -> Iterator[NDArray[np.uint8]]:
        from wvl_ros.world_model.patches import resize

        for block in entry.blocks(cameras):
            yield np.stack([resize(block[camera], height, width) for camera in cameras], 1)

    shape = (len(cameras), height, width, 3)
    recipe = Recipe(
        f"windows1_{width}x{height}_{names}", shape, sum(_COLUMNS.values()), np.float64, frames, step_numbers
    )
    return open_cache(path, recipe, folder=folder)


def step_numbers(episode: Episode) -> NDArray[np.float64]:
    """The numbers of every step (N, 22): joints, flange pose, gripper, command in force (as a pose), reward."""
    from wvl_ros.worlds.recorded import commanded_poses

    reward = np.concatenate([[0.0], episode.reward])[:, None]
    states = (episode.joint_position, episode.cartesian_position, episode.gripper_position)
    return np.hstack([*states, commanded_poses(episode), reward])


class WindowSampler:
    """Draws windows without end. Window n depends on the seed, n and the cache alone: not on ranks or batches.

    Args:
        cache: of `window_cache`.

    Raises:
        ConfigError: `every` does not fit an episode's images, or no episode has a weight.
    """

    def __init__(self, cache: Cache, config: WindowConfig | None = None) -> None:
        self.cache, self.config = cache, config or WindowConfig()
        self._position = 0
        self._stride = np.array([entry.image_stride for entry in cache.entries], np.int64)
        if (self.config.every % self._stride).any():
            odd = cache.entries[int(np.flatnonzero(self.config.every % self._stride)[0])]
            raise ConfigError(
                f"Episode '{odd.name}' has an image each {odd.image_stride} steps: set every to a multiple of it, "
                f"not {self.config.every}."
            )
        # Presents: every image but one that nothing follows.
        self._presents = np.maximum(1, -(-(cache.step_count - 1) // self._stride))
        self._cumulative = np.cumsum(self._weights())
        self._cumulative /= self._cumulative[-1]

    def _weights(self) -> NDArray[np.float64]:
        """How often each episode is drawn: its group's share, divided by its share of the group's windows."""
        config, entries = self.config, self.cache.entries
        windows = self._presents.astype(float)
        if config.natural:
            return windows
        outcomes = config.outcome_weights
        if outcomes is None:
            outcomes = {entry.outcome: 1.0 for entry in entries if entry.outcome != "aborted"}
        iterations = config.iteration_weights
        if iterations is None:
            iterations = {entry.iteration: 1.0 for entry in entries}
        shares = np.array([outcomes.get(e.outcome, 0.0) * iterations.get(e.iteration, 0.0) for e in entries])
        groups = [(entry.outcome, entry.iteration) for entry in entries]
        totals: dict[tuple[str, int], float] = {}
        for group, count in zip(groups, windows, strict=True):
            totals[group] = totals.get(group, 0.0) + count
        weights = shares * windows / np.array([totals[group] for group in groups])
        if not weights.sum() > 0:
            found = ", ".join(sorted({entry.outcome or "unknown" for entry in entries}))
            raise ConfigError(f"No episode has a weight: their outcomes are {found}; set outcome_weights for these.")
        return weights

    def sample(self, batch: int, images: NDArray[np.uint8] | None = None) -> Windows:
        """The next windows of this rank.

        Args:
            batch: B. images: an array of a former batch to fill again, which saves the time to make one.
        """
        config = self.config
        numbers = self._position + config.rank + config.ranks * np.arange(batch)
        self._position += batch * config.ranks
        return self.windows(*self._draw(numbers), images)

    def __iter__(self) -> Iterator[Windows]:
        """Single windows (B = 1) without end."""
        while True:
            yield self.sample(1)

    def state(self) -> dict[str, int]:
        """All that `restore` needs; the same on every rank after as many batches."""
        return {"seed": self.config.seed, "position": self._position}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on where `state` was taken.

        Raises:
            ConfigError: it was taken with another seed.
        """
        if int(state["seed"]) != self.config.seed:
            raise ConfigError(f"The saved windows were drawn with seed {state['seed']}, not {self.config.seed}.")
        self._position = int(state["position"])

    def windows(
        self, episode: NDArray[np.int64], step: NDArray[np.int64], images: NDArray[np.uint8] | None = None
    ) -> Windows:
        """The windows of given episodes (B,) with their present frame at given control steps (B,)."""
        config, cache = self.config, self.cache
        stride, count = self._stride[episode][:, None], cache.step_count[episode][:, None]
        wanted = step[:, None] + (np.arange(config.frames) - config.history) * config.every  # (B, T)
        steps = np.clip(wanted, 0, (count - 1) // stride * stride)  # of images
        rows = (cache.frame_start[episode][:, None] + steps // stride).ravel()
        shape = (len(episode), config.frames, *cache.frames.shape[1:])
        if images is None or images.shape != shape:
            images = np.empty(shape, np.uint8)
        np.take(cache.frames, rows, axis=0, out=images.reshape(-1, *shape[2:]), mode="clip")
        base = cache.step_start[episode][:, None]
        found = np.split(cache.numbers[base + steps].astype(np.float32), np.cumsum(list(_COLUMNS.values()))[:-1], 2)
        numbers = dict(zip(_COLUMNS, found, strict=True))
        taken = wanted[:, :, None] + np.arange(config.every)  # an action's step is the observation's before it
        last = count[:, :, None] - 1
        commands = cache.numbers[base[:, :, None] + np.clip(taken + 1, 0, last)][..., 14:21]
        return Windows(
            images=images,
            joint_position=numbers["joint_position"],
            cartesian_position=numbers["cartesian_position"],
            gripper_position=numbers["gripper_position"],
            action=commands.astype(np.float32),
            reward=numbers["reward"][..., 0],
            valid=(wanted >= 0) & (wanted < count),
            action_valid=(taken >= 0) & (taken < last),
            episode=episode,
            step=step,
            instruction=[cache.entries[i].instruction for i in episode],
            outcome=[cache.entries[i].outcome for i in episode],
        )

    def _draw(self, numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Episodes and present steps of the windows with these numbers."""
        first, second = (_uniform(self.config.seed, numbers, stream) for stream in (0, 1))
        episode = np.searchsorted(self._cumulative, first, side="right").clip(max=len(self._cumulative) - 1)
        present = (second * self._presents[episode]).astype(np.int64)
        return episode, present * self._stride[episode]


def _uniform(seed: int, numbers: NDArray[np.int64], stream: int) -> NDArray[np.float64]:
    """Uniform in [0, 1), a function of seed, number and stream: SplitMix64's scrambling of a counter."""
    start = np.uint64(int.from_bytes(hashlib.sha256(f"{seed} {stream}".encode()).digest()[:8], "little"))
    with np.errstate(over="ignore"):
        x = start + (numbers.astype(np.uint64) + np.uint64(1)) * _GOLDEN
        x = (x ^ (x >> np.uint64(30))) * _MIX[0]
        x = (x ^ (x >> np.uint64(27))) * _MIX[1]
        x = x ^ (x >> np.uint64(31))
    return (x >> np.uint64(11)).astype(np.float64) * 2.0**-53
