"""Whether the reward head listens is measured: what it makes of instructions that ask for something else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from wvl_ros.checkpoints import find
from wvl_ros.evaluation import listening
from wvl_ros.evaluation.imagined import ImaginedEpisode
from wvl_ros.evaluation.listening import listening_measures
from wvl_ros.sans.episode import Episode
from wvl_ros.training.frame_cache import FrameCache, open_cache
from wvl_ros.world_model.loading import load_small_world_model


@pytest.mark.parametrize(("listens", "expected"), [(True, 0.0), (False, 1.0)])
def test_a_head_that_listens_is_told_from_one_that_does_not(
    tmp_path: Path,
    make_episode: Callable[..., Episode],
    monkeypatch: pytest.MonkeyPatch,
    listens: bool,
    expected: float,
) -> None:
    for i, outcome in enumerate(("success", "failure", "success")):
        make_episode(seed=i, outcome=outcome, steps=13).save(tmp_path / f"{i}.safetensors")
    cache = open_cache(tmp_path, size=64, patch=4, actions_per_frame=3, rig="tabletop")
    model = load_small_world_model(find("world_model", "small"), "a test")
    own = list(cache.instructions)

    def imagine(_: Any, told: FrameCache, episodes: np.ndarray, **__: Any) -> list[ImaginedEpisode]:
        rollouts = []
        for episode in episodes.tolist():
            right = told.instructions[episode] == own[episode]
            chance = 0.99 if right or not listens else 0.01
            frames = np.zeros((4, 16, 16, 144), np.uint8)
            rollouts.append(ImaginedEpisode(frames, np.full(4, chance), torch.zeros(4, 39)))
        return rollouts

    monkeypatch.setattr(listening, "imagine_episodes", imagine)
    episodes = np.array([2, 1, 0])
    found = listening_measures(model, cache, episodes, imagine(None, cache, episodes))
    assert (found["episodes"], found["named"], found["misnamed"]) == (2, 1.0, expected)


def test_without_a_success_there_is_nothing_to_tell(tmp_path: Path, make_episode: Callable[..., Episode]) -> None:
    make_episode(seed=0, outcome="failure", steps=13).save(tmp_path / "0.safetensors")
    cache = open_cache(tmp_path, size=64, patch=4, actions_per_frame=3, rig="tabletop")
    model = load_small_world_model(find("world_model", "small"), "a test")
    found = listening_measures(model, cache, np.array([0]), [])
    assert (found["episodes"], found["named"], found["misnamed"]) == (0, None, None)
