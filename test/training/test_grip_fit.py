"""The grip is fitted on frames in which a gripper closes, and reports on episodes it has not seen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from wvl_ros.sans.episode import Episode
from wvl_ros.training import grip_fit
from wvl_ros.training.grip_fit import _tell, fit_grip, frames_by_kind
from wvl_ros.training.world_model_data import TrainingData, open_data
from wvl_ros.training.world_model_settings import WorldModelTraining, build_model
from wvl_ros.world_model.grip import likeliest
from wvl_ros.world_model.kinematics import GRIPPER

SETTINGS = WorldModelTraining(model={"image_size": 32, "channels": 8, "condition_dim": 16})


@pytest.fixture
def data(make_episode: Callable[..., Episode], tmp_path: Path) -> TrainingData:
    for i in range(24):
        outcome = ("success", "failure")[i % 2]
        make_episode(seed=i, outcome=outcome, steps=(25, 19)[i // 2 % 2]).save(tmp_path / f"{i}.safetensors")
    return open_data(SETTINGS, SETTINGS.model, tmp_path)


def test_it_learns_where_a_gripper_that_closes_is_next(data: TrainingData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grip_fit, "_BATCH", 24)
    torch.manual_seed(0)
    model = build_model(SETTINGS, data.cache)
    assert fit_grip(model, data.cache, torch.Generator().manual_seed(0), 0) == {}
    found = fit_grip(model, data.cache, torch.Generator().manual_seed(0), 250)
    assert {"grip_closing_right", "grip_other_right"} <= set(found)  # of two unseen episodes: too few to ask more
    closing = frames_by_kind(data.cache)["closing"]
    with torch.no_grad():
        told, true = _tell(model, data.cache, closing[~data.cache.held_out[closing[:, 0]]])
    assert float(((likeliest(told) - true).abs() < 0.1).float().mean()) > 0.9


def test_closing_is_when_it_moves_and_is_told_to_close(data: TrainingData) -> None:
    cache = data.cache
    pools = frames_by_kind(cache)
    assert sum(len(pool) for pool in pools.values()) == int((cache.frame_count - 1).sum())
    episode, index = pools["closing"].unbind(1)
    before, after = (cache.kinematics[cache.step(episode, index + k), GRIPPER] for k in (0, 1))
    assert bool((after > before + 0.02).all())


def test_an_episode_and_its_mirror_image_are_unseen_together(data: TrainingData) -> None:
    unseen = data.cache.held_out
    own = len(data.own)
    assert len(data.cache) == 2 * own
    assert torch.equal(unseen[:own], unseen[own:])
    assert 0 < int(unseen.sum()) < len(unseen) // 2
