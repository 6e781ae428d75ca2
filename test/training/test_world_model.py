"""`wvl train world-model` on a handful of synthetic episodes: it learns, resumes exactly and survives a kill."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from wvl_ros.errors import ConfigError, EpisodeError
from wvl_ros.evaluation import world_model as evaluation
from wvl_ros.sans.episode import Episode
from wvl_ros.sans.episodes import episode_files
from wvl_ros.training import checkpointing
from wvl_ros.training import world_model as command
from wvl_ros.training.frame_cache import FrameCache, open_cache
from wvl_ros.training.world_model_data import open_data
from wvl_ros.training.world_model_run import Sources, train
from wvl_ros.training.world_model_settings import Budget, WorldModelTraining
from wvl_ros.training.world_model_trainer import Trainer
from wvl_ros.world_model.loading import load_world_model

CONFIG = """
model: {channels: 16, condition_dim: 32, rig: tabletop}
training: {batch: 4, tracking_effort: 0.02, validation_episodes: 4, warmup: 5, learning_rate: 0.002,
  reward_fit_share: 0}
"""


@pytest.fixture
def data(tmp_path: Path, make_episode: Callable[..., Episode]) -> Path:
    for i in range(6):
        outcome = ("success", "near_success", "failure")[i % 3]
        make_episode(seed=i, outcome=outcome, steps=13 + 3 * (i % 2)).save(tmp_path / "data" / f"{i}.safetensors")
    return tmp_path / "data"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "config.yaml").write_text(CONFIG)
    return tmp_path / "config.yaml"


def test_a_stopped_run_goes_on_to_the_same_weights(tmp_path: Path, data: Path, config: Path) -> None:
    settings = WorldModelTraining.load(config)
    (tmp_path / "halves").mkdir()
    trainer = _trainer(settings, data, tmp_path / "halves")
    trainer.checkpoint()
    shutil.copytree(tmp_path / "halves", tmp_path / "whole")
    train(settings, Sources(data), tmp_path / "whole", Budget(8, None))
    # The other one is stopped after 3 of 8; the schedule is that of the whole run.
    for _ in range(3):
        trainer.update(Budget(8, None).done(trainer.step, 0))
    trainer.checkpoint()
    result = train(settings, Sources(data), tmp_path / "halves", Budget(8, None))
    assert result["step"] == 8
    whole, halves = (load_world_model(tmp_path / name).state_dict() for name in ("whole", "halves"))
    assert all(torch.equal(whole[name], halves[name]) for name in whole)


def test_training_validates_and_the_checkpoint_can_be_evaluated(tmp_path: Path, data: Path, config: Path) -> None:
    out = tmp_path / "run"
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    words = ["--data", data, "--validation", data, "--out", out, "--config", config, "--steps", "12"]
    result = command.run(parser.parse_args([str(word) for word in words]))
    assert {"images", "arm", "outcome", "chosen"} <= set(result["validation"])
    assert "blind" in result["validation"]["outcome"]
    assert list(out.glob("validation_*.png"))
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert {line["kind"] for line in lines} >= {"servo", "validation"}
    command.show(result)

    parser = argparse.ArgumentParser()
    evaluation.add_arguments(parser)
    words = [out, "--data", data, "--sheet", tmp_path / "sheet.png"]
    figures = evaluation.run(parser.parse_args([str(word) for word in words]))
    json.dumps(figures)
    evaluation.show(figures)
    assert figures["episodes"] == 6
    # Synthetic arms obey their commands exactly, and the fitted servo must not spoil that by more than centimetres.
    assert figures["arm"]["tcp_mm"]["median"] < 30
    assert (tmp_path / "sheet.png").stat().st_size > 1000
    chosen = load_world_model(out).config
    assert chosen["success_threshold"] == result["validation"]["chosen"]["success_threshold"]


def test_the_loss_falls_on_one_batch_of_episodes(tmp_path: Path, data: Path, config: Path) -> None:
    settings = WorldModelTraining.load(config)
    trainer = _trainer(settings, data, tmp_path)
    trainer.update(0.0)
    before = trainer.losses["image"]
    for _ in range(75):
        trainer.update(0.0)
    assert trainer.losses["image"] < 0.95 * before


def test_what_is_fitted_beforehand_is_on_disk_at_once_and_stays(tmp_path: Path, data: Path, config: Path) -> None:
    settings, apart = WorldModelTraining.load(config), ("finder.", "grip.", "physics.", "tracking.")
    trainer = _trainer(settings, data, tmp_path)
    fitted = {name: weight.clone() for name, weight in trainer.model.state_dict().items() if name.startswith(apart)}
    assert {name.partition(".")[0] for name in fitted} == {"finder", "grip", "physics", "tracking"}
    for _ in range(3):
        trainer.update(0.0)
    again = _trainer(settings, data, tmp_path)  # as after a kill
    assert again.step == 0
    for model in (trainer.model, trainer.average, again.model):
        weights = model.state_dict()
        assert all(torch.equal(fitted[name], weights[name]) for name in fitted)


def test_a_killed_run_goes_on(tmp_path: Path, data: Path, config: Path) -> None:
    config.write_text(CONFIG.replace("batch: 4", "batch: 4, checkpoint_seconds: 0.0"))
    code = (
        "import sys; from pathlib import Path; from wvl_ros.training.world_model import *\n"
        "data, config, out = (Path(word) for word in sys.argv[1:])\n"
        "train(WorldModelTraining.load(config), Sources(data), out, Budget(100000, None))"
    )
    words = [sys.executable, "-c", code, str(data), str(config), str(tmp_path / "run")]
    process = subprocess.Popen(words, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    try:
        state = tmp_path / "run" / "state.safetensors"
        deadline = time.monotonic() + 120
        while not _steps(state) and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.1)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    settings = WorldModelTraining.load(config)
    trainer = _trainer(settings, data, tmp_path / "run")
    assert trainer.step >= 1
    reached = trainer.step
    trainer.update(0.5)
    assert trainer.step == reached + 1
    load_world_model(tmp_path / "run" / "last")


def test_the_cache_is_made_anew_when_episodes_come(data: Path, make_episode: Callable[..., Episode]) -> None:
    before = _cache(data)
    assert len(before) == 6
    assert _cache(data).fingerprint == before.fingerprint
    make_episode(seed=9, source="teleop/droid", instruction="wipe it").save(data / "droid" / "9.safetensors")
    after = _cache(data)
    assert len(after) == 7
    assert after.calibrated.sum() == 6
    assert after.rewards.sum() == before.rewards.sum() + 4


def test_what_cannot_be_trained_on_is_said(tmp_path: Path, make_episode: Callable[..., Episode]) -> None:
    with pytest.raises(EpisodeError, match="wvl collect"):
        episode_files(tmp_path / "nothing")
    episode = make_episode()
    del episode.images["wrist_image_left"]
    episode.save(tmp_path / "one" / "0.safetensors")
    with pytest.raises(EpisodeError, match="wrist_image_left"):
        _cache(tmp_path / "one")
    (tmp_path / "bad.yaml").write_text("training: {bacth: 3}")
    with pytest.raises(ConfigError, match="bacth"):
        WorldModelTraining.load(tmp_path / "bad.yaml")
    with pytest.raises(ConfigError, match="share"):
        WorldModelTraining(teacher_forcing=2.0)


def _cache(data: Path) -> FrameCache:
    return open_cache(data, size=64, patch=4, actions_per_frame=3, rig="tabletop")


def _steps(state: Path) -> int:
    return int(checkpointing.load_state(state)[1]["step"]) if state.exists() else 0


def _trainer(settings: WorldModelTraining, data: Path, out: Path) -> Trainer:
    trainer = Trainer(settings, open_data(settings, settings.model, data), out)
    trainer.prepare()
    return trainer
