"""Episodes decoded once for the world model: frames as patches in a memory-mapped file, and the numbers of every
step.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from wvl_ros.errors import EpisodeError
from wvl_ros.sans.episode import Episode
from wvl_ros.world_model import patches
from wvl_ros.world_model.kinematics import Kinematics
from wvl_ros.worlds import droid
from wvl_ros.worlds.imagined import is_calibrated
from wvl_ros.worlds.recorded import commanded_poses

_VERSION = 1


@dataclass
class FrameCache:
    """Episodes as the world model trains on them; frame j of an episode is at its step 3 j.

    Attributes:
        frames: uint8 memory map (F, G, G, C), all episodes one after another.
        kinematics: float32 (S, 39) of every step. actions: float32 (S, 7), row s leads from step s to s + 1 (none at an
            end).
        rewards: float32 (S,), 1 where the step's observation is a success state.
        frame_start, frame_count, step_start: int64 (E,) of every episode.
        instructions, outcomes, tasks: E strings. calibrated: float32 (E,), 1 for episodes of the calibrated rig.
        fingerprint: changes with the episode files.
    """

    frames: NDArray[np.uint8]
    kinematics: Tensor
    actions: Tensor
    rewards: Tensor
    frame_start: Tensor
    frame_count: Tensor
    step_start: Tensor
    instructions: list[str]
    outcomes: list[str]
    tasks: list[str]
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


def episode_files(folder: Path | str) -> list[Path]:
    """The episode files of a folder and its sub-folders, sorted.

    Raises:
        EpisodeError: there is no such folder, or no episode in it.
    """
    folder = Path(folder)
    files = sorted(path for path in folder.rglob("*.safetensors") if not path.name.startswith("."))
    if not files:
        raise EpisodeError(f"There are no episodes (*.safetensors) in '{folder}'; make some with `wvl collect`.")
    return files


def open_cache(
    folder: Path | str, *, size: int, patch: int, actions_per_frame: int, rig: str, limit: int | None = None
) -> FrameCache:
    """The cache of a folder of episodes, made when it is not there or the episodes have changed.

    Args:
        size, patch: pixels of a view and of a patch, as the model has them.
        actions_per_frame: control steps between frames. rig: where the calibrated cameras are; see `is_calibrated`.
        limit: take only so many episodes, evenly over the folder.
    """
    files = episode_files(folder)
    if limit is not None and limit < len(files):
        files = [files[i] for i in np.linspace(0, len(files) - 1, limit).round().astype(int)]
    listing = [(str(path.relative_to(folder)), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    key = json.dumps([_VERSION, size, patch, actions_per_frame, rig, listing])
    fingerprint = hashlib.sha256(key.encode()).hexdigest()[:16]
    target = Path(folder) / f".frames_{size}_{fingerprint}"
    if not target.is_dir():
        for old in Path(folder).glob(f".frames_{size}_*"):
            if limit is None:
                shutil.rmtree(old, ignore_errors=True)
        _build(files, target, size, patch, actions_per_frame, rig)
    return _open(target, actions_per_frame, fingerprint)


def episode_arrays(episode: Episode) -> tuple[Tensor, Tensor]:
    """Packed kinematics (N, 39) of all steps and the actions (N - 1, 7) as commanded poses, float32."""
    commands = torch.from_numpy(commanded_poses(episode))
    poses, grippers = torch.from_numpy(episode.cartesian_position), torch.from_numpy(episode.gripper_position)
    return Kinematics.recorded(poses, grippers, commands).pack().float(), commands[1:].float()


def episode_frames(
    episode: Episode, size: int, patch: int, every: int, steps: Sequence[int] | None = None
) -> NDArray[np.uint8]:
    """Frames (M, G, G, C) uint8 of an episode at every so many steps, or at the given ones.

    Raises:
        EpisodeError: a camera is missing, or images were not taken at these steps.
    """
    missing = [camera for camera in droid.CAMERAS if camera not in episode.images]
    if missing:
        raise EpisodeError(
            f"Episode '{episode.episode_id}' lacks the camera '{missing[0]}'; the world model needs all three."
        )
    stride = episode.image_stride
    if steps is None:
        if every % stride:
            raise EpisodeError(
                f"Episode '{episode.episode_id}' has an image each {stride} steps, not each {every} as needed."
            )
        steps = range(0, len(episode), every)
    rows = np.asarray(steps) // stride
    views = [patches.resize(episode.images[camera][rows], size, size) for camera in droid.CAMERAS]
    return patches.to_patches(np.stack(views, 1), patch)


def _build(files: list[Path], target: Path, size: int, patch: int, every: int, rig: str) -> None:
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    part.mkdir(parents=True)
    try:
        counts: list[list[int]] = []
        meta: list[list[Any]] = []
        for path in tqdm(files, desc="reading episodes", unit="episode", disable=None):
            episode = Episode.load(path)
            meta.append([episode.instruction, episode.outcome, episode.task, is_calibrated(episode, rig)])
            kinematics, actions = episode_arrays(episode)
            last = actions[-1:] if len(actions) else torch.zeros(1, 7)
            np.savez(
                part / f"{len(counts)}.npz",
                frames=episode_frames(episode, size, patch, every),
                kinematics=kinematics.numpy(),
                actions=torch.cat([actions, last]).numpy(),
                rewards=np.concatenate([np.zeros(1, np.float32), episode.reward]),
            )
            counts.append([(len(episode) - 1) // every + 1, len(episode)])
        total = np.sum(counts, 0)
        grid, channels = size // patch, 9 * patch * patch
        frames = open_memmap(part / "frames.npy", "w+", np.uint8, (int(total[0]), grid, grid, channels))
        arrays: dict[str, list[NDArray[np.float32]]] = {"kinematics": [], "actions": [], "rewards": []}
        start = 0
        for i, (count, _) in enumerate(counts):
            with np.load(part / f"{i}.npz") as saved:
                frames[start : start + count] = saved["frames"]
                for name, parts in arrays.items():
                    parts.append(saved[name])
            (part / f"{i}.npz").unlink()
            start += count
        frames.flush()
        for name, parts in arrays.items():
            np.save(part / f"{name}.npy", np.concatenate(parts))
        (part / "episodes.json").write_text(json.dumps({"counts": counts, "meta": meta}))
        part.rename(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _open(target: Path, every: int, fingerprint: str) -> FrameCache:
    facts: dict[str, Any] = json.loads((target / "episodes.json").read_text())
    counts = torch.tensor(facts["counts"])
    starts = torch.cumsum(counts, 0) - counts
    arrays = {name: torch.from_numpy(np.load(target / f"{name}.npy")) for name in ("kinematics", "actions", "rewards")}
    instructions, outcomes, tasks, calibrated = zip(*facts["meta"], strict=True)
    return FrameCache(
        frames=np.load(target / "frames.npy", mmap_mode="r"),
        **arrays,
        frame_start=starts[:, 0],
        frame_count=counts[:, 0],
        step_start=starts[:, 1],
        instructions=list(instructions),
        outcomes=list(outcomes),
        tasks=list(tasks),
        calibrated=torch.tensor(calibrated, dtype=torch.float32),
        actions_per_frame=every,
        fingerprint=fingerprint,
    )
