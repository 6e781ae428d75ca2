"""VLAW's update: what the judge keeps is learned from, in the asked proportions; a stopped run goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from wvl_ros.errors import ConfigError
from wvl_ros.policies.network import PolicyConfig
from wvl_ros.policies.small import SmallPolicy
from wvl_ros.sans.episode import Episode
from wvl_ros.sans.episodes import EpisodeEntry, list_episodes
from wvl_ros.training import vlaw_run
from wvl_ros.training.practice import practise
from wvl_ros.training.samples import Samples
from wvl_ros.training.supervised import SupervisedTrainer, TrainConfig
from wvl_ros.training.vlaw import VLAWSettings, hard_start_weights, mixed_chances
from wvl_ros.training.vlaw_run import KEPT_FOLDER, VLAW
from wvl_ros.world_model.imagination import Imagination
from wvl_ros.worlds.imagined_start import find_start

LeftOf = Callable[[float], Imagination]
SETTINGS = VLAWSettings(rollouts=96, steps=80, update=TrainConfig(learning_rate=1e-3, warmup_steps=5))
LINE = 0.3


class AtTheEnd:
    """Accepts what its world said at the last frame."""

    name, threshold = "at_the_end", 0.5

    def probability(self, episodes: Sequence[Episode]) -> NDArray[np.float64]:
        return np.array([episode.extra["success_probability"][-1] for episode in episodes])  # type: ignore[index]


class Never(AtTheEnd):
    """Accepts nothing."""

    name = "never"

    def probability(self, episodes: Sequence[Episode]) -> NDArray[np.float64]:
        return np.zeros(len(episodes))


def _policy(head: str) -> SmallPolicy:
    torch.manual_seed(0)
    config = PolicyConfig(channels=8, keypoints=4, hidden=32, offset_std=0.1, ripple_std=0.03, head=head)
    return SmallPolicy(config)


def _vlaw(
    world: Imagination, entries: list[EpisodeEntry], out: Path, head: str = "gaussian", judge: AtTheEnd | None = None
) -> VLAW:
    return VLAW(_policy(head), world, "tabletop", judge or AtTheEnd(), entries, SETTINGS, out, ("mine", "simple"))


def _success(policy: SmallPolicy, world: Imagination, entry: EpisodeEntry) -> float:
    start = find_start(entry.load(), 0, world, "tabletop")
    practice = practise(policy, world, [start] * 200, range(200), 1.0, torch.Generator().manual_seed(1))
    return float(practice.success.float().mean())


@pytest.mark.parametrize("head", ["gaussian", "flow"])
def test_a_policy_gets_better_by_its_own_imagined_successes(
    left_of: LeftOf, entries: list[EpisodeEntry], tmp_path: Path, head: str
) -> None:
    world = left_of(LINE)
    run = _vlaw(world, entries, tmp_path, head)
    before = _success(run.policy, world, entries[0])
    rollouts = run.imagine()
    facts = run.learn(iter(()), rollouts)
    assert facts["steps"] == SETTINGS.steps
    again = SmallPolicy.from_pretrained(tmp_path)
    assert _success(again, world, entries[0]) > before + 0.15
    kept = list_episodes(tmp_path / KEPT_FOLDER)
    assert len(kept) == sum(rollout.accepted for rollout in rollouts) > 0
    episode = kept[0].load()
    assert (episode.outcome, episode.outcome_source) == ("success", "reward_model")
    assert episode.extra["judge"] == "at_the_end"
    assert (episode.policy, episode.world_model, float(episode.reward[-1])) == ("mine", "simple", 1.0)


def test_a_stopped_run_imagines_the_same_rollouts(
    left_of: LeftOf, entries: list[EpisodeEntry], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _vlaw(left_of(LINE), entries, tmp_path / "whole").imagine()
    assert len(whole) == 2 * SETTINGS.rollouts
    run, first = _vlaw(left_of(LINE), entries, tmp_path / "parts"), VLAW._batch

    def stop_after_one(self: VLAW, recorder: object, number: int) -> list[object]:
        if number:
            raise KeyboardInterrupt
        return first(self, recorder, number)  # type: ignore[arg-type, return-value]

    monkeypatch.setattr(VLAW, "_batch", stop_after_one)
    with pytest.raises(KeyboardInterrupt):
        run.imagine()
    monkeypatch.setattr(VLAW, "_batch", first)
    assert _vlaw(left_of(LINE), entries, tmp_path / "parts").imagine() == whole


def test_rollouts_of_other_settings_are_not_mixed(left_of: LeftOf, entries: list[EpisodeEntry], tmp_path: Path) -> None:
    _vlaw(left_of(LINE), entries, tmp_path, judge=Never())  # nothing begins
    _vlaw(left_of(LINE), entries, tmp_path).imagine()
    _vlaw(left_of(LINE), entries, tmp_path)
    with pytest.raises(ConfigError, match=r"begun with judge at_the_end, not never: .* another --out"):
        _vlaw(left_of(LINE), entries, tmp_path, judge=Never())
    with pytest.raises(ConfigError, match="begun with starts"):
        _vlaw(left_of(LINE), entries[:1], tmp_path)


def test_nothing_accepted_is_said(left_of: LeftOf, entries: list[EpisodeEntry], tmp_path: Path) -> None:
    run = _vlaw(left_of(LINE), entries, tmp_path, judge=Never())
    run.settings = replace(SETTINGS, learn_from="synthetic")
    with pytest.raises(ConfigError, match="accepted none of the 192"):
        run.learn(iter(()), run.imagine())


def test_finding_and_acting_learn_from_imagined_successes_in_shares_of_their_own(
    left_of: LeftOf, entries: list[EpisodeEntry], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Asked(SupervisedTrainer):
        """Remembers how often imagined samples are to be drawn, for acting and for finding."""

        shares: ClassVar[list[list[float]]] = []

        def __init__(
            self, policy: SmallPolicy, samples: Samples, config: TrainConfig, out: Path, *chances: Any
        ) -> None:
            super().__init__(policy, samples, config, out, *chances)
            self.shares.append([float(each[samples.episode >= len(real)].sum()) for each in chances])

    monkeypatch.setattr(vlaw_run, "SupervisedTrainer", Asked)
    run = _vlaw(left_of(LINE), entries, tmp_path)
    rollouts = run.imagine()
    first, *_, last = list_episodes(tmp_path / KEPT_FOLDER)
    real = [first.load(), last.load()]
    assert len({episode.task for episode in real}) == 2
    for share, finding in ((0.2, 0.75), (0.2, None), (0.0, 0.8)):
        run.settings = replace(SETTINGS, steps=1, synthetic_share=share, finding_share=finding)
        run.learn(iter(real), rollouts)
        assert Asked.shares.pop() == pytest.approx([share, share if finding is None else finding])


def test_rare_successes_count_more() -> None:
    starts, accepted = np.array([0, 0, 0, 0, 1, 1]), np.array([True, False, False, False, True, True])
    np.testing.assert_allclose(hard_start_weights(starts, accepted), [0.77] * 4 + [0.02] * 2)


@pytest.mark.parametrize("share", [0.5, 0.2, None])
def test_real_and_synthetic_samples_are_drawn_as_asked(share: float | None) -> None:
    task = np.array([0] * 10 + [1] * 4)
    synthetic = np.array([False] * 2 + [True] * 8 + [False] * 4)  # of the second task none were imagined
    none = torch.zeros(14, 0)
    samples = Samples(none, none, none, none, task, task, np.arange(14), ("a",), ("push", "stack"))
    weights = np.where(np.arange(14) == 9, 3.0, 1.0)
    chances = mixed_chances(samples, synthetic, weights, share)
    assert chances.sum() == pytest.approx(1)
    assert chances[task == 0].sum() == pytest.approx(0.5)
    first = chances[:10] / chances[:10].sum()
    assert first[2:].sum() == pytest.approx(10 / 12 if share is None else share)
    assert first[9] == pytest.approx(3 * first[8])
