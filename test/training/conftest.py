"""A world so simple that a policy must get better there, and episodes to start from."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from wvl_ros.sans.episode import Episode
from wvl_ros.sans.episodes import EpisodeEntry, list_episodes
from wvl_ros.world_model.imagination import ImaginedFrames
from wvl_ros.world_model.kinematics import Kinematics, euler_to_matrix


class LeftOf:
    """An `Imagination` in which the arm is where it is commanded to be, and success is to be left of a line."""

    image_size = (64, 64)
    smallest_image = 64
    frames_per_call = 1
    actions_per_frame = 3

    def __init__(self, line: float) -> None:
        self.line = line

    def start(
        self, views: Tensor, kinematics: Tensor, instructions: Sequence[str], calibrated: Tensor, seeds: Sequence[int]
    ) -> None:
        self.kinematics, self.views = kinematics, views
        self.start_y = Kinematics.unpack(kinematics).position[:, 1]
        self.active = torch.ones(len(views), dtype=torch.bool)
        self.success = torch.zeros(len(views), dtype=torch.bool)
        self._moves = 0

    def move(self, actions: Tensor) -> Tensor:
        k = Kinematics.unpack(self.kinematics)
        position, rotation = actions[:, :3].float(), euler_to_matrix(actions[:, 3:6]).float()
        new = k._replace(
            position=position, commanded_position=position, rotation=rotation, commanded_rotation=rotation
        ).pack()
        self.kinematics = torch.where(self.active[:, None], new, self.kinematics)
        self._moves += 1
        return self.kinematics

    @property
    def frame_due(self) -> bool:
        return self._moves == 3

    def imagine(self) -> ImaginedFrames:
        self._moves = 0
        k = Kinematics.unpack(self.kinematics)
        self.success |= self.active & (k.position[:, 1] > self.start_y + self.line)
        drawn = self.active[:, None].clone()
        self.active = self.active & ~self.success
        chance = self.success.float()[:, None]
        return ImaginedFrames(self.views[:, None], chance, k.state()[:, None], self.kinematics, drawn)

    def stop(self, which: Tensor) -> None:
        self.active = self.active & ~which


def in_two_processes(*words: object) -> None:
    """Runs Python with such arguments in two processes that know of each other, as users start them."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *map(str, words)], env=environment, capture_output=True, text=True, timeout=380, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture
def two_processes() -> Callable[..., None]:
    """See `in_two_processes`."""
    return in_two_processes


@pytest.fixture
def left_of() -> type[LeftOf]:
    """A world in which success is to have moved to the left by more than so many meters."""
    return LeftOf


@pytest.fixture
def entries(tmp_path: Path, make_episode: Callable[..., Episode]) -> list[EpisodeEntry]:
    for i in range(2):
        episode = replace(make_episode(seed=i, steps=13), task=("push", "stack")[i])
        episode.save(tmp_path / "data" / f"{i}.safetensors")
    return list_episodes(tmp_path / "data")
