"""What finds things learns from the first frames of episodes that say where they were."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from wvl_ros.errors import EpisodeError
from wvl_ros.sans.collect import collect_episode
from wvl_ros.sans.episodes import iter_episodes
from wvl_ros.training import finder_fit
from wvl_ros.training.finder_fit import fit_finder
from wvl_ros.training.slots import Slots, SlotSettings
from wvl_ros.training.world_model_data import TrainingData, open_data
from wvl_ros.training.world_model_settings import WorldModelTraining, build_model
from wvl_ros.world_model.things import Things
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


def test_slots_carry_the_things_of_their_frames_where_cameras_are_calibrated(data: TrainingData) -> None:
    cache = data.cache
    settings = SlotSettings(32, 0.0, 0.5, 0.0, 0.4, 0.0, [])
    slots = Slots(cache, settings, torch.Generator().manual_seed(0), torch.ones(len(cache)))
    slots.refill()
    true = cache.things_at(slots.episode, cache.step(slots.episode, slots.index))
    known = slots.calibrated != 0
    assert bool(known.any())
    assert bool((~known).any())
    assert torch.equal(slots.things, true * known[:, None])
    assert bool((Things.unpack(slots.first_things).there.sum(1) > 0).eq(known).all())
    going_on, moved = torch.arange(32) % 2 == 0, slots.things + 0.01
    slots.advance(going_on, slots.last, slots.kinematics, moved)
    assert torch.equal(slots.things, torch.where(going_on[:, None], moved, true * known[:, None]))


def test_things_that_an_episode_tells_wrongly_are_refused(data: TrainingData, tmp_path: Path) -> None:
    episode = next(iter_episodes(data.path))
    for objects, told in (([[0.5, 0.0, 0.02]], "(1, 3)"), ([[1.0], [1.0, 2.0]], "an uneven list")):
        replace(episode, extra=episode.extra | {"objects": objects}).save(tmp_path / "one.safetensors")
        with pytest.raises(EpisodeError, match="`objects`") as refused:
            open_data(WorldModelTraining(), {}, tmp_path)
        assert told in str(refused.value)
