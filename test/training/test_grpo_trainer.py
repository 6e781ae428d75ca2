"""GRPO of a small policy in a world so simple that it must get better there: success is to have moved to the left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from wvl_ros.errors import ConfigError
from wvl_ros.policies.network import PolicyConfig
from wvl_ros.policies.small import SmallPolicy
from wvl_ros.sans.episode import Episode
from wvl_ros.sans.episodes import EpisodeEntry, list_episodes
from wvl_ros.training.grpo import GRPOSettings
from wvl_ros.training.grpo_trainer import STATE_FILE, GRPOTrainer
from wvl_ros.world_model.imagination import ImaginedFrames
from wvl_ros.world_model.kinematics import Kinematics, euler_to_matrix

SETTINGS = GRPOSettings(updates=6, groups=4, group_size=8, attempts=2, minibatch=64, learning_rate=1e-3)


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


@pytest.fixture
def entries(tmp_path: Path, make_episode: Callable[..., Episode]) -> list[EpisodeEntry]:
    for i in range(2):
        episode = replace(make_episode(seed=i, steps=13), task=("push", "stack")[i])
        episode.save(tmp_path / "data" / f"{i}.safetensors")
    return list_episodes(tmp_path / "data")


def _policy(seed: int = 0) -> SmallPolicy:
    torch.manual_seed(seed)
    return SmallPolicy(PolicyConfig(channels=8, keypoints=4, hidden=32, offset_std=0.1, ripple_std=0.03))


def _trainer(entries: list[EpisodeEntry], out: Path, line: float = 0.02, **changes: object) -> GRPOTrainer:
    return GRPOTrainer(_policy(), LeftOf(line), "tabletop", entries, replace(SETTINGS, **changes), out)  # type: ignore[arg-type]


def test_a_policy_gets_better_at_what_is_rewarded(entries: list[EpisodeEntry], tmp_path: Path) -> None:
    trainer = _trainer(entries, tmp_path / "out", line=0.3, updates=12, target_kl=0.05)
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


def test_a_stopped_run_goes_on_to_the_same_policy(entries: list[EpisodeEntry], tmp_path: Path) -> None:
    settings = {"lowest": 0.0, "highest": 1.0, "line": 0.3}
    whole = _trainer(entries, tmp_path / "whole", updates=4, **settings)  # type: ignore[arg-type]
    whole.fit()
    _trainer(entries, tmp_path / "parts", updates=2, **settings).fit()  # type: ignore[arg-type]
    second = _trainer(entries, tmp_path / "parts", updates=4, **settings)  # type: ignore[arg-type]
    assert second.update == 2
    second.fit()
    for name, tensor in whole.network.state_dict().items():
        assert torch.equal(tensor, second.network.state_dict()[name]), name


@pytest.mark.parametrize(("line", "said"), [(9.0, "rollouts failed"), (-9.0, "rollouts succeeded")])
def test_all_alike_is_nothing_to_learn_from(
    entries: list[EpisodeEntry], tmp_path: Path, line: float, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        _trainer(entries, tmp_path / "out", line).fit()
    assert not (tmp_path / "out" / STATE_FILE).exists()


def test_a_gradient_that_is_no_number_stops_the_run_and_keeps_the_policy(
    entries: list[EpisodeEntry], tmp_path: Path
) -> None:
    settings = {"lowest": 0.0, "highest": 1.0}
    _trainer(entries, tmp_path / "out", 0.3, updates=1, **settings).fit()
    kept = SmallPolicy.from_pretrained(tmp_path / "out").network.state_dict()
    trainer = _trainer(entries, tmp_path / "out", 0.3, updates=3, **settings)
    trainer.network.head[0].weight.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(ConfigError, match="not a number"):
        trainer.fit()
    again = SmallPolicy.from_pretrained(tmp_path / "out").network.state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in kept.items())


def test_falling_success_in_the_real_world_ends_the_run(entries: list[EpisodeEntry], tmp_path: Path) -> None:
    shares = iter((0.6, 0.65, 0.2, 0.2))
    settings = replace(SETTINGS, updates=6, lowest=0.0, highest=1.0, check_every=1)

    def check(folder: Path) -> dict[str, float]:
        assert (folder / "model.safetensors").is_file()
        return {"success": next(shares), "episodes": 100}

    trainer = GRPOTrainer(_policy(), LeftOf(0.3), "tabletop", entries, settings, tmp_path / "out", check)
    result = trainer.fit()
    assert result["updates"] == 2
    assert "real world" in result["reason"]
    assert [found["update"] for found in result["checks"]] == [0, 1, 2]
