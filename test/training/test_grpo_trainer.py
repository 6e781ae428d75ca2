"""GRPO of a small policy in a world so simple that it must get better there: success is to have moved to the left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from wvl_ros.errors import ConfigError
from wvl_ros.policies.network import PolicyConfig
from wvl_ros.policies.small import SmallPolicy
from wvl_ros.sans.episode import Episode
from wvl_ros.sans.episodes import EpisodeEntry, list_episodes
from wvl_ros.training.arena import Beginning, ImaginedArena
from wvl_ros.training.grpo import GRPOSettings
from wvl_ros.training.grpo_trainer import STATE_FILE, GRPOTrainer
from wvl_ros.world_model.imagination import Imagination

LeftOf = Callable[[float], Imagination]
SETTINGS = GRPOSettings(
    updates=6, groups=4, group_size=8, attempts=2, minibatch=64, learning_rate=1e-3, temperature=2.0
)


def _policy(seed: int = 0) -> SmallPolicy:
    torch.manual_seed(seed)
    return SmallPolicy(PolicyConfig(channels=8, keypoints=4, hidden=32, offset_std=0.1, ripple_std=0.03))


def _searching() -> SmallPolicy:
    torch.manual_seed(0)
    cameras = ("exterior_image_1_left", "wrist_image_left")
    config = PolicyConfig(
        cameras=cameras, place_channels=8, channels=8, keypoints=4, hidden=32, offset_std=0.1, ripple_std=0.03
    )
    return SmallPolicy(config)


def _trainer(
    left_of: LeftOf, entries: list[EpisodeEntry], out: Path, line: float = 0.02, **changes: object
) -> GRPOTrainer:
    return GRPOTrainer(_policy(), ImaginedArena(left_of(line), "tabletop"), entries, replace(SETTINGS, **changes), out)  # type: ignore[arg-type]


@pytest.mark.parametrize("explore", ["chunk", "offset"])
def test_a_policy_gets_better_at_what_is_rewarded(
    explore: str, left_of: LeftOf, entries: list[EpisodeEntry], tmp_path: Path
) -> None:
    trainer = _trainer(left_of, entries, tmp_path / "out", line=0.3, updates=12, target_kl=0.05, explore=explore)
    before = trainer._practise()[1]
    result = trainer.fit()
    after = trainer._practise()[1]
    assert float(after.mean()) > float(before.mean()) + 0.25
    assert result["updates"] <= 12
    assert result["rollouts"] >= result["updates"] * 32
    again = SmallPolicy.from_pretrained(tmp_path / "out").network.state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in trainer.network.state_dict().items())
    lines = (tmp_path / "out" / "log.jsonl").read_text()
    assert "imagined_success" in lines
    assert "divergence" in lines


def test_practice_leaves_what_words_mean_alone(left_of: LeftOf, entries: list[EpisodeEntry], tmp_path: Path) -> None:
    policy = _searching()
    before = {name: tensor.clone() for name, tensor in policy.network.state_dict().items()}
    arena = ImaginedArena(left_of(0.3), "tabletop")
    GRPOTrainer(policy, arena, entries, replace(SETTINGS, updates=2), tmp_path / "out").fit()
    changed = {name for name, tensor in policy.network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert any(name.startswith("head.") for name in changed)
    assert any(name.startswith("encoders.") for name in changed)
    assert not [name for name in changed if name.startswith(("finder.", "names.", "language."))]


def test_what_is_learned_from_is_as_likely_as_when_it_was_chosen(
    left_of: LeftOf, entries: list[EpisodeEntry], tmp_path: Path
) -> None:
    policy = _searching()
    policy.network.train()  # as it comes from cloning: its manner is vague then
    trainer = GRPOTrainer(policy, ImaginedArena(left_of(0.3), "tabletop"), entries, SETTINGS, tmp_path / "out")
    kept = trainer._practise()[0]
    assert kept is not None
    rows, decisions = kept[0].counts.any(2).nonzero(as_tuple=True)
    ratios = []
    learned = trainer.policy.noise.log_prob_parts

    def note(*args: Tensor) -> Tensor:
        ratios.append(learned(*args))
        return ratios[-1]

    trainer.policy.noise.log_prob_parts = note  # type: ignore[method-assign, assignment]
    trainer.settings = replace(SETTINGS, minibatch=10_000, epochs=1)
    trainer._learn(*kept)
    assert len(ratios) == 1
    order = ratios[0].flatten(1).sum(1).sort().values
    assert torch.allclose(order, kept[0].log_probs[rows, decisions].flatten(1).sum(1).sort().values, atol=1e-3)


def test_what_is_not_explored_is_held(left_of: LeftOf, entries: list[EpisodeEntry], tmp_path: Path) -> None:
    def gripper(network: torch.nn.Module) -> torch.Tensor:
        practice = ImaginedArena(left_of(0.3), "tabletop").practise(
            _policy(), [Beginning(entry) for entry in entries], [0, 1], 1.0, torch.Generator().manual_seed(0)
        )
        rows, decisions = practice.counts.any(2).nonzero(as_tuple=True)
        with torch.no_grad():
            return torch.as_tensor(network(practice.inputs(rows, decisions)).gripper)

    strayed = []
    for weight in (0.0, 100.0):
        trainer = _trainer(
            left_of, entries, tmp_path / f"{weight}", line=0.3, updates=4, target_kl=0, explore="offset",
            hold_weight=weight, learning_rate=3e-3,
        )  # fmt: skip
        before = gripper(trainer.network)
        trainer.fit()
        strayed.append(float((gripper(trainer.network) - before).abs().mean()))
    assert strayed[1] < 0.5 * strayed[0]


def test_only_what_is_missing_is_practised_once_more(
    left_of: LeftOf, entries: list[EpisodeEntry], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = _trainer(left_of, entries, tmp_path, 0.3, attempts=4, lowest=0.3, highest=0.6)
    asked: list[int] = []
    starts = trainer._starts
    monkeypatch.setattr(trainer, "_starts", lambda count: asked.append(count) or starts(count))
    kept, rewards, _ = trainer._practise()
    groups = rewards.mean(1)
    right = ((groups >= 0.3) & (groups <= 0.6)).tolist()
    missing = SETTINGS.groups
    for count in asked:
        assert count == missing
        missing -= sum(right[:count])
        right = right[count:]
    assert len(asked) > 1
    assert kept is not None
    assert len(kept[1]) == 8 * (SETTINGS.groups - missing)


def test_rollouts_begin_in_the_first_part_of_an_episode_where_a_policy_looks(
    left_of: LeftOf, make_episode: Callable[..., Episode], tmp_path: Path
) -> None:
    for i in range(2):
        make_episode(seed=i, steps=61).save(tmp_path / f"{i}.safetensors")
    trainer = _trainer(left_of, list_episodes(tmp_path), tmp_path / "out", latest=0.5)
    steps = {beginning.step for beginning in trainer._starts(200)}
    assert steps == {0, 6, 12, 18, 24, 30}  # the policy looks every sixth step
    trainer.settings = replace(trainer.settings, latest=0.0)
    assert {beginning.step for beginning in trainer._starts(20)} == {0}


def test_a_rollout_that_begins_late_ends_with_the_recording_or_its_task(
    left_of: LeftOf, make_episode: Callable[..., Episode], tmp_path: Path
) -> None:
    for task in ("push", "fold the towel"):  # one of the tabletop's, which has 60 steps, and one of somebody's own
        replace(make_episode(steps=31), task=task).save(tmp_path / f"{task}.safetensors")
    by_task = {entry.task: entry for entry in list_episodes(tmp_path)}
    arena = ImaginedArena(left_of(9.0), "tabletop")
    for task, left in (("push", 42), ("fold the towel", 12)):
        beginning = Beginning(by_task[task], 18)
        practice = arena.practise(_policy(), [beginning], [0], 1.0, torch.Generator().manual_seed(0))
        assert int(practice.counts.sum()) == left


def test_a_stopped_run_goes_on_to_the_same_policy(left_of: LeftOf, entries: list[EpisodeEntry], tmp_path: Path) -> None:
    settings = {"lowest": 0.0, "highest": 1.0, "line": 0.3}
    whole = _trainer(left_of, entries, tmp_path / "whole", updates=4, **settings)
    whole.fit()
    _trainer(left_of, entries, tmp_path / "parts", updates=2, **settings).fit()
    second = _trainer(left_of, entries, tmp_path / "parts", updates=4, **settings)
    assert second.update == 2
    second.fit()
    for name, tensor in whole.network.state_dict().items():
        assert torch.equal(tensor, second.network.state_dict()[name]), name


@pytest.mark.parametrize(("line", "said"), [(9.0, "rollouts failed"), (-9.0, "rollouts succeeded")])
def test_all_alike_is_nothing_to_learn_from(
    left_of: LeftOf, entries: list[EpisodeEntry], tmp_path: Path, line: float, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        _trainer(left_of, entries, tmp_path / "out", line).fit()
    assert not (tmp_path / "out" / STATE_FILE).exists()


def test_a_gradient_that_is_no_number_stops_the_run_and_keeps_the_policy(
    left_of: LeftOf, entries: list[EpisodeEntry], tmp_path: Path
) -> None:
    settings = {"lowest": 0.0, "highest": 1.0}
    _trainer(left_of, entries, tmp_path / "out", 0.3, updates=1, **settings).fit()
    kept = SmallPolicy.from_pretrained(tmp_path / "out").network.state_dict()
    trainer = _trainer(left_of, entries, tmp_path / "out", 0.3, updates=3, **settings)
    trainer.network.head[0].weight.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(ConfigError, match="not a number"):
        trainer.fit()
    again = SmallPolicy.from_pretrained(tmp_path / "out").network.state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in kept.items())


def test_falling_success_in_the_real_world_ends_the_run(
    left_of: LeftOf, entries: list[EpisodeEntry], tmp_path: Path
) -> None:
    shares = iter((0.6, 0.65, 0.2, 0.2))
    settings = replace(SETTINGS, updates=6, lowest=0.0, highest=1.0, check_every=1)

    def check(folder: Path, tasks: Sequence[str]) -> dict[str, float]:
        assert list(tasks) == ["push", "stack"]
        assert (folder / "model.safetensors").is_file()
        return {"success": next(shares), "episodes": 100}

    trainer = GRPOTrainer(
        _policy(), ImaginedArena(left_of(0.3), "tabletop"), entries, settings, tmp_path / "out", check
    )
    result = trainer.fit()
    assert result["updates"] == 2
    assert "real world" in result["reason"]
    assert "the policy after update 1 is kept" in result["reason"]
    assert [found["update"] for found in result["checks"]] == [0, 1, 2]
    kept, best = (SmallPolicy.from_pretrained(tmp_path / "out" / name).network for name in ("", "best"))
    now = trainer.network.state_dict()
    assert all(torch.equal(tensor, best.state_dict()[name]) for name, tensor in kept.state_dict().items())
    assert not all(torch.equal(tensor, now[name]) for name, tensor in kept.state_dict().items())


class Doubter:
    """A judge that believes everything at first, then nothing."""

    name, threshold = "doubter", 0.5

    def __init__(self, patience: int) -> None:
        self.left = patience

    def probability(self, episodes: Sequence[Episode]) -> NDArray[np.float64]:
        self.left -= len(episodes)
        return np.full(len(episodes), float(self.left >= 0))


def test_a_second_judge_that_believes_ever_less_ends_the_run(
    left_of: LeftOf, entries: list[EpisodeEntry], tmp_path: Path
) -> None:
    settings = replace(SETTINGS, updates=12, lowest=0.0, highest=1.0)
    out = tmp_path / "out"
    trainer = GRPOTrainer(
        _policy(), ImaginedArena(left_of(0.3), "tabletop", Doubter(patience=60)), entries, settings, out
    )
    result = trainer.fit()
    assert 6 <= result["updates"] < 12
    assert "'doubter' believes ever fewer" in result["reason"]
    told = trainer.disagreements
    assert sum(told[-3:]) - sum(told[:3]) > 3 * settings.disagreement_margin
    assert (out / "progress.png").stat().st_size > 10_000
    again = GRPOTrainer(_policy(), ImaginedArena(left_of(0.3), "tabletop", Doubter(0)), entries, settings, out)
    assert again.disagreements == told
