"""How the reward head is trained: with the network and once more on its own rollouts, or as a classifier by itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from wvl_ros.sans.episode import Episode
from wvl_ros.training import reward_fit, world_model_trainer
from wvl_ros.training.classifier_fit import fit_classifier
from wvl_ros.training.frame_cache import FrameCache
from wvl_ros.training.misnaming import Misnaming, Wordings
from wvl_ros.training.processes import Processes
from wvl_ros.training.world_model_data import open_data
from wvl_ros.training.world_model_run import Run, Sources, train
from wvl_ros.training.world_model_settings import Budget, WorldModelTraining, build_model
from wvl_ros.training.world_model_trainer import Trainer
from wvl_ros.world_model.loading import load_world_model

SETTINGS = WorldModelTraining(
    batch=2, tracking_effort=0.01, warmup=1, bfloat16=False, model={"channels": 8, "condition_dim": 16}
)


def named(cache: FrameCache, share: float = 0.2) -> Wordings:
    return Wordings(cache.instructions, cache.outcomes, Misnaming(), share)


@pytest.fixture
def data(tmp_path: Path, make_episode: Callable[..., Episode]) -> Path:
    for i, outcome in enumerate(("success", "failure")):
        make_episode(seed=i, outcome=outcome).save(tmp_path / "data" / f"{i}.safetensors")
    return tmp_path / "data"


def test_the_head_is_fitted_once_more_on_own_rollouts(tmp_path: Path, data: Path) -> None:
    result = train(SETTINGS, Sources(data), tmp_path / "out", Budget(10, None))
    assert result["reward_fit"]["updates"] == 1
    fitted, last = (load_world_model(folder).state_dict() for folder in (tmp_path / "out", tmp_path / "out" / "last"))
    changed = {name for name, tensor in fitted.items() if not torch.equal(tensor, last[name])}
    assert {name.partition(".")[0] for name in changed} == {"instruction", "reward_head"}


def test_the_head_learns_from_few_frames_of_many_rollouts(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Many rollouts are drawn in bfloat16 where the processor can; one or two of their frames must do for an update.
    monkeypatch.setattr(reward_fit, "_EARLY", 0.03)
    monkeypatch.setattr(reward_fit, "_LATE", 0)
    cache = open_data(SETTINGS, SETTINGS.model, data).cache
    torch.manual_seed(0)
    model = build_model(SETTINGS, cache)
    before = model.reward_head.heed.weight.clone()
    figures = reward_fit.fit_reward(model, cache, named(cache), updates=6, generator=torch.Generator().manual_seed(0))
    assert figures["updates"] == 6
    assert not torch.equal(model.reward_head.heed.weight, before)  # it heeds the part that sees frames alone
    assert all(torch.isfinite(parameter).all() for parameter in model.reward_head.parameters())


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_success_is_judged_by_another_name_too_and_by_it_is_none(
    data: Path, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    cache = open_data(SETTINGS, SETTINGS.model, data).cache
    model = build_model(SETTINGS, cache)
    names = named(cache, share)
    told: list[str] = []
    truths: list[float] = []
    tell, loss = names.told, torch.nn.functional.binary_cross_entropy_with_logits

    def noted(episode: torch.Tensor, wording: torch.Tensor) -> list[str]:
        texts = tell(episode, wording)
        told.extend(texts)
        return texts

    def learned(logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        truths.extend(truth.tolist())
        return loss(logits, truth)

    monkeypatch.setattr(names, "told", noted)
    monkeypatch.setattr(reward_fit.F, "binary_cross_entropy_with_logits", learned)
    reward_fit.fit_reward(model, cache, names, updates=4, generator=torch.Generator().manual_seed(0))
    others = {text for texts in names.texts for text in texts[1:]}
    assert others
    pairs = list(zip(told, truths, strict=True))
    assert any(true == 1 for _, true in pairs)
    by_another = [true for text, true in pairs if text in others and text not in cache.instructions]
    assert bool(by_another) == (share > 0)
    assert not any(by_another)


def test_frames_of_the_latest_rollouts_are_learned_from_alike(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = open_data(SETTINGS, SETTINGS.model, data).cache
    model = build_model(SETTINGS, cache)
    drawn: list[reward_fit.Seen] = []
    pools: list[int] = []
    draw = reward_fit._draw

    def noted(lately: Any, count: int, generator: torch.Generator) -> reward_fit.Seen:
        pools.append(sum(len(part.true) for part in lately))
        drawn.append(draw(lately, count, generator))
        return drawn[-1]

    monkeypatch.setattr(reward_fit, "_draw", noted)
    monkeypatch.setattr(reward_fit, "_KEPT", 400)
    reward_fit.fit_reward(model, cache, named(cache), updates=30, generator=torch.Generator().manual_seed(0))
    assert 400 < max(pools) < 1000
    assert pools[-1] < sum(pools[:1]) * 4  # what is older is forgotten
    one = drawn[-1]
    assert len(one.evidence.frame) == len(one.evidence.features) == 3 * len(one.true)
    assert set(one.episode.tolist()) == set(range(len(cache)))
    for i, episode in enumerate(one.episode.tolist()):  # what was seen stays with its episode
        assert float(one.true[i]) <= float(cache.outcomes[episode] == "success")


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_network_learns_that_a_misnamed_success_is_none(
    data: Path, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    settings = replace(SETTINGS, misnamed_share=share, batch=8, end_share=0.9)
    trainer = Trainer(settings, open_data(settings, settings.model, data), data.parent / "slots")
    trainer.prepare()
    slots, loss = trainer.slots, world_model_trainer.reward_loss
    slots.refill()
    success = [trainer.cache.outcomes[i] == "success" for i in slots.episode.tolist()]
    assert (slots.wording > 0).tolist() == [is_one and share > 0 for is_one in success]
    truths: list[torch.Tensor] = []

    def noted(logits: torch.Tensor, truth: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        truths.append(truth)
        return loss(logits, truth, *rest)

    monkeypatch.setattr(world_model_trainer, "reward_loss", noted)
    for _ in range(6):
        trainer.update(0.5)
    assert bool(torch.cat(truths).any()) == (share == 0)
    kept = slots.state()["slots.wording"].clone()
    slots.wording = torch.zeros_like(kept)
    slots.restore(slots.state() | {"slots.wording": kept})
    assert torch.equal(slots.wording, kept)  # a stopped run goes on with the same names


def test_a_separate_classifier_has_nothing_of_the_network(tmp_path: Path, data: Path) -> None:
    settings = replace(SETTINGS, joint_reward=False)
    trainer = Trainer(settings, open_data(settings, settings.model, data), tmp_path / "trainer")
    trainer.prepare()
    head = {name: tensor.clone() for name, tensor in trainer.model.reward_head.state_dict().items()}
    trainer.update(0.0)
    trainer.update(0.1)
    assert all(torch.equal(tensor, head[name]) for name, tensor in trainer.model.reward_head.state_dict().items())
    result = train(settings, Sources(data), tmp_path / "out", Budget(10, None))
    assert {"classifier", "updates"} <= set(result["reward_fit"])
    assert result["reward_fit"]["classifier"]["updates"] == 10  # as many as the network, whose head would learn with it
    model = load_world_model(tmp_path / "out")
    assert model.config["joint_reward"] is False


def test_the_classifier_learns_what_a_success_looks_like(data: Path) -> None:
    settings = replace(SETTINGS, joint_reward=False)
    cache = open_data(settings, settings.model, data).cache
    torch.manual_seed(0)
    model = build_model(settings, cache)
    figures = fit_classifier(model, cache, named(cache), updates=25, generator=torch.Generator().manual_seed(0))
    assert figures["updates"] == 25
    assert figures["loss"] < 0.6


def test_without_near_successes_there_are_none_in_validation(
    tmp_path: Path, make_episode: Callable[..., Episode]
) -> None:
    for i, outcome in enumerate(("success", "near_success", "failure")):
        make_episode(seed=i, outcome=outcome).save(tmp_path / "data" / f"{i}.safetensors")
    settings = replace(SETTINGS, outcomes=["success", "failure"])
    sources = Sources(tmp_path / "data", tmp_path / "data")
    run = Run(settings, sources, tmp_path / "out", Budget(1, None), Processes())
    assert run.held is not None
    assert run.held.outcomes == ["success", "failure"]
