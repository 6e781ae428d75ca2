"""The grip is fitted on frames in which a gripper closes, and reports on episodes that it has not seen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from wvl_ros.sans.episode import Episode
from wvl_ros.training.grip_fit import _frames, _tell, _true_frames, _unseen, fit_grip, imagined_closings
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


def test_it_learns_where_a_gripper_that_closes_is_next(data: TrainingData) -> None:
    torch.manual_seed(0)
    model = build_model(SETTINGS, data.cache)
    assert fit_grip(model, data.cache, torch.Generator().manual_seed(0), 0) == {}
    found = fit_grip(model, data.cache, torch.Generator().manual_seed(0), 200)
    assert set(found) == {"grip_closing_right", "grip_all_right"}  # of two unseen episodes: too few to ask more
    closing = _frames(data.cache)[0]
    with torch.no_grad():
        logits, true = _tell(model, _true_frames(data.cache, closing[~_unseen(data.cache)[closing[:, 0]]]))
    assert float(((likeliest(logits) - true).abs() < 0.1).float().mean()) > 0.9


def test_closing_is_when_it_moves_and_is_told_to_close(data: TrainingData) -> None:
    cache = data.cache
    closing, others = _frames(cache)
    assert len(closing) + len(others) == int((cache.frame_count - 1).sum())
    episode, index = closing.unbind(1)
    before, after = (cache.kinematics[cache.step(episode, index + k), GRIPPER] for k in (0, 1))
    assert bool((after > before + 0.02).all())


def test_it_learns_from_what_the_model_draws_as_well(data: TrainingData) -> None:
    torch.manual_seed(0)
    model = build_model(SETTINGS, data.cache)
    drawn: list[int] = []
    model.register_forward_pre_hook(lambda _, given: drawn.append(len(given[0])))
    own = imagined_closings(model, data.cache, torch.Generator().manual_seed(0), 40)
    assert drawn == sorted(drawn, reverse=True)
    assert drawn[-1] < drawn[0]  # a rollout ends with its last closing
    assert own.closing.any()
    assert (~own.closing).any()
    gap = own.true[:, 0] - own.kinematics[:, GRIPPER]
    assert float(gap[own.closing].min()) > 0.02  # told as it truly was, so that the next one follows from it
    found = fit_grip(model, data.cache, torch.Generator().manual_seed(0), 150, own)
    assert set(found) == {"grip_closing_right", "grip_all_right"}
    with torch.no_grad():
        logits, true = _tell(model, own.select(own.closing.nonzero()[:, 0]))
    assert float(((likeliest(logits) - true).abs() < 0.1).float().mean()) > 0.9


def test_an_episode_and_its_mirror_image_are_unseen_together(data: TrainingData) -> None:
    unseen = _unseen(data.cache)
    own = len(data.own)
    assert len(data.cache) == 2 * own
    assert torch.equal(unseen[:own], unseen[own:])
    assert 0 < int(unseen.sum()) < len(unseen) // 2
