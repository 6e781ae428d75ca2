"""What finds things learns from the first frames of episodes that say where they were."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from wvl_ros.sans.collect import collect_episode
from wvl_ros.training import finder_fit
from wvl_ros.training.finder_fit import fit_finder
from wvl_ros.training.world_model_data import TrainingData, open_data
from wvl_ros.training.world_model_settings import WorldModelTraining, build_model
from wvl_ros.worlds.tabletop import TabletopWorld


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TrainingData:
    folder = tmp_path_factory.mktemp("blocks")
    world = TabletopWorld("push", 64, 64, image_stride=3)
    for seed in range(12):
        episode = collect_episode(world, "push", seed, steps=6)
        replace(episode, outcome=("success", "failure")[seed % 2]).save(folder / f"{seed}.safetensors")
    return open_data(WorldModelTraining(), {}, folder)


def test_it_finds_what_it_was_shown_and_says_how_well(data: TrainingData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finder_fit, "_BATCH", 8)
    monkeypatch.setattr(finder_fit, "_UPDATES", 120)
    torch.manual_seed(0)
    model = build_model(WorldModelTraining(model={"channels": 8, "condition_dim": 16}), data.cache)
    found = fit_finder(model, data.cache, torch.Generator().manual_seed(0))
    assert set(found) == {"finder_found", "finder_mm", "finder_more"}
    assert found["finder_found"] >= 0.5
    assert found["finder_mm"] < 10


def test_of_episodes_that_say_nothing_it_learns_nothing(data: TrainingData) -> None:
    torch.manual_seed(0)
    model = build_model(WorldModelTraining(model={"channels": 8, "condition_dim": 16}), data.cache)
    before = {name: weight.clone() for name, weight in model.finder.state_dict().items()}
    unknown = data.cache.select(list(range(len(data.cache))))
    unknown.things = torch.full_like(unknown.things, torch.nan)
    assert fit_finder(model, unknown, torch.Generator().manual_seed(0)) == {}
    assert all(torch.equal(before[name], weight) for name, weight in model.finder.state_dict().items())
