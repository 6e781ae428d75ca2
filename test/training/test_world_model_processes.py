"""Two processes train the world model as one does, by the command that users type."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from wvl_ros.errors import ConfigError
from wvl_ros.sans.episode import Episode
from wvl_ros.training.checkpointing import load_state
from wvl_ros.training.processes import Processes
from wvl_ros.training.world_model_run import Sources, train
from wvl_ros.training.world_model_settings import Budget, WorldModelTraining

CONFIG = """
model: {channels: 16, condition_dim: 32, rig: tabletop}
training: {batch: 4, tracking_effort: 0.02, warmup: 5, learning_rate: 0.002, reward_fit_share: 0, bfloat16: false,
  teacher_forcing: 0.3}
"""
STEPS = 6


@pytest.mark.timeout(400)
def test_two_processes_give_the_result_of_one(
    tmp_path: Path, make_episode: Callable[..., Episode], two_processes: Callable[..., None]
) -> None:
    for i in range(6):
        outcome = ("success", "near_success", "failure")[i % 3]
        make_episode(seed=i, outcome=outcome, steps=16).save(tmp_path / "data" / f"{i}.safetensors")
    (tmp_path / "config.yaml").write_text(CONFIG)
    settings = WorldModelTraining.load(tmp_path / "config.yaml")
    data = tmp_path / "data"
    one = train(settings, Sources(data), tmp_path / "one", Budget(STEPS, None))
    words = ("-m", "wvl_ros.cli", "train", "world-model", "--data", data, "--out", tmp_path / "two")
    two_processes(*words, "--config", tmp_path / "config.yaml", "--steps", STEPS)
    (first, facts), (second, facts_of_two) = (
        load_state(tmp_path / name / "state.safetensors") for name in ("one", "two")
    )
    assert facts["step"] == facts_of_two["step"] == one["step"] == STEPS
    for name, tensor in first.items():
        assert torch.allclose(tensor.float(), second[name].float(), atol=1e-4), name
    assert len((tmp_path / "two" / "log.jsonl").read_text().splitlines()) == len(
        (tmp_path / "one" / "log.jsonl").read_text().splitlines()
    )  # only one of them writes


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    assert Processes(1, 2).share(6) == slice(3, 6)
    with pytest.raises(ConfigError, match="multiple"):
        Processes(0, 2).share(5)
