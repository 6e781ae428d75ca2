"""Settings from YAML, and the one sentence about an impossible one."""

from __future__ import annotations

from pathlib import Path

import pytest

from wvl_ros.errors import ConfigError
from wvl_ros.training.grpo import GRPOSettings
from wvl_ros.training.settings import read_settings
from wvl_ros.training.supervised import TrainConfig
from wvl_ros.training.vlaw import VLAWSettings
from wvl_ros.training.world_model_settings import WorldModelTraining


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: GRPOSettings(group_size=1), "GRPO's group_size must be at least 2 .*, but is 1"),
        (lambda: GRPOSettings(kl_weight=-0.1), "kl_weight must be 0 or more, but is -0.1"),
        (lambda: TrainConfig(word_dropout=1.0), "word_dropout must be in 0..1, but is 1.0"),
        (lambda: VLAWSettings(rollouts=0), "VLAW's rollouts must be at least 1, but is 0"),
        (lambda: VLAWSettings(synthetic_share=1.0), "synthetic_share must be in 0..1"),
        (lambda: VLAWSettings(finding_share=-0.1), "finding_share must be in 0..1"),
        (lambda: WorldModelTraining(ema=1.0), "ema must be in 0..1, but is 1.0"),
        (lambda: WorldModelTraining(patience=-1), "patience must be 0 or more, but is -1"),
    ],
)
def test_an_impossible_setting_is_named_with_its_value(make: object, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make()  # type: ignore[operator]


def test_tables_and_unknown_keys(tmp_path: Path) -> None:
    path = tmp_path / "vlaw.yaml"
    path.write_text("rollouts: 7\nsynthetic_share: null\nupdate: {batch_size: 5}\n")
    settings = read_settings(VLAWSettings, path, update=TrainConfig)
    assert (settings.rollouts, settings.synthetic_share, settings.update.batch_size) == (7, None, 5)
    path.write_text("update: {batches: 5}\n")
    with pytest.raises(ConfigError, match="unknown setting 'batches'"):
        read_settings(VLAWSettings, path, update=TrainConfig)


@pytest.mark.parametrize(
    "name", ["policy_small", "policy_grpo", "policy_vlaw", "policy_searching_vlaw", "world_model_small"]
)
def test_the_shipped_configurations_are_the_defaults_or_say_so(name: str) -> None:
    path = Path(__file__).parents[2] / "config" / f"{name}.yaml"
    if name == "world_model_small":
        assert WorldModelTraining.load(path).balanced
    elif name == "policy_searching_vlaw":
        settings = read_settings(VLAWSettings, path, update=TrainConfig)
        assert (settings.finding_share, settings.synthetic_share) == (0.8, 0.3)
        assert settings.update.weight_decay == 0.5
    elif name == "policy_small":
        assert TrainConfig.from_yaml(path) == TrainConfig()
    elif name == "policy_grpo":
        assert read_settings(GRPOSettings, path) == GRPOSettings()
    else:
        assert read_settings(VLAWSettings, path, update=TrainConfig) == VLAWSettings()
