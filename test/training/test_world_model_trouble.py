"""What goes wrong in training ends in one sentence that says what to do, and never costs the last checkpoint."""

from __future__ import annotations

import argparse
import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from wvl_ros.errors import CheckpointError, ConfigError, EpisodeError
from wvl_ros.sans.episode import Episode
from wvl_ros.training import checkpointing, world_model, world_model_run, world_model_trainer
from wvl_ros.training.world_model_data import open_data
from wvl_ros.training.world_model_run import Sources, train
from wvl_ros.training.world_model_settings import Budget, WorldModelTraining
from wvl_ros.training.world_model_trainer import Trainer
from wvl_ros.world_model.loading import load_world_model

SETTINGS = WorldModelTraining(
    batch=2, tracking_effort=0.01, warmup=1, reward_fit_share=0.0, model={"channels": 8, "condition_dim": 16}
)
MakeEpisode = Callable[..., Episode]


@pytest.fixture
def data(tmp_path: Path, make_episode: MakeEpisode) -> Path:
    for i, outcome in enumerate(("success", "failure")):
        make_episode(seed=i, outcome=outcome).save(tmp_path / "data" / f"{i}.safetensors")
    return tmp_path / "data"


def _open(folder: Path, settings: WorldModelTraining = SETTINGS) -> None:
    open_data(settings, settings.model, folder)


@pytest.mark.parametrize(
    ("outcomes", "missing"),
    [(["success"] * 3, "near-successes or failures"), (["failure"] * 3, "successes"), ([""] * 2, "successes")],
)
def test_a_reward_head_cannot_learn_from_one_outcome(
    tmp_path: Path, make_episode: MakeEpisode, outcomes: list[str], missing: str
) -> None:
    for i, outcome in enumerate(outcomes):
        make_episode(seed=i, outcome=outcome).save(tmp_path / f"{i}.safetensors")
    with pytest.raises(ConfigError, match=f"Add {missing}"):
        _open(tmp_path)


def test_without_near_successes_and_by_the_expert_alone(tmp_path: Path, make_episode: MakeEpisode) -> None:
    for i, (outcome, source) in enumerate(
        [("success", "expert"), ("near_success", "expert"), ("failure", "expert"), ("failure", "policy")]
    ):
        make_episode(seed=i, outcome=outcome, source=f"{source}/tabletop").save(tmp_path / f"{i}.safetensors")
    far = replace(SETTINGS, outcomes=["success", "failure"])
    assert open_data(far, {}, tmp_path).own.outcomes == ["success", "failure", "failure"]
    expert = replace(SETTINGS, sources="expert")
    assert len(open_data(expert, {}, tmp_path).own) == 3
    with pytest.raises(ConfigError, match="`sources`"):
        _open(tmp_path, replace(SETTINGS, sources=["teleop"]))
    with pytest.raises(ConfigError, match="near_success"):
        replace(SETTINGS, outcomes=["nearly"])


def test_short_and_missing_episodes(tmp_path: Path, make_episode: MakeEpisode) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(EpisodeError, match="wvl collect"):
        _open(tmp_path / "empty")
    make_episode(steps=3).save(tmp_path / "short" / "0.safetensors")
    with pytest.raises(ConfigError, match="4 steps"):
        _open(tmp_path / "short")


def _wrist_missing(episode: Episode) -> None:
    del episode.images["wrist_image_left"]


def _wrist_larger(episode: Episode) -> None:
    episode.images["wrist_image_left"] = episode.images["wrist_image_left"].repeat(2, axis=1)


def _fast(episode: Episode) -> None:
    episode.fps = 30.0


def _images_at_odd_steps(episode: Episode) -> None:
    episode.image_stride = 2
    episode.images = {name: np.concatenate([stack, stack])[:7] for name, stack in episode.images.items()}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (_wrist_missing, "wrist_image_left"),
        (_wrist_larger, "differ in size .*64x128"),
        (_fast, "30 Hz"),
        (_images_at_odd_steps, "each 2 steps, not each 3"),
    ],
)
def test_episodes_of_another_rig(
    tmp_path: Path, make_episode: MakeEpisode, change: Callable[[Episode], None], sentence: str
) -> None:
    episode = make_episode()
    change(episode)
    episode.save(tmp_path / "0.safetensors")
    with pytest.raises(EpisodeError, match=sentence):
        _open(tmp_path)


def test_actions_of_any_space_become_poses(tmp_path: Path, make_episode: MakeEpisode) -> None:
    poses, joints = make_episode(seed=0), make_episode(seed=0, outcome="failure")
    joints.action = np.hstack([joints.joint_position[1:], joints.gripper_position[1:]])
    joints.action_space = "joint_position"
    poses.save(tmp_path / "a.safetensors")
    joints.save(tmp_path / "b.safetensors")
    cache = open_data(SETTINGS, {}, tmp_path).cache
    one, other = (cache.chunk(torch.tensor([i]), torch.tensor([1])) for i in (0, 1))
    assert torch.allclose(one[..., :3], other[..., :3], atol=1e-3)
    joints.action = joints.action[:, :5]
    joints.save(tmp_path / "b.safetensors")
    with pytest.raises(EpisodeError, match="action should have the shape"):
        _open(tmp_path)


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_checkpoint(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    train(SETTINGS, Sources(data), out, Budget(2, None))
    before = load_world_model(out).state_dict()
    usual = world_model_trainer.image_loss
    monkeypatch.setattr(world_model_trainer, "image_loss", lambda *a: usual(*a) * float("nan"))
    with pytest.raises(ConfigError, match=r"at update 2.*lower the learning rate \(now 0.001\)"):
        train(SETTINGS, Sources(data), out, Budget(4, None))
    monkeypatch.undo()
    assert all(torch.equal(tensor, before[name]) for name, tensor in load_world_model(out).state_dict().items())
    assert train(SETTINGS, Sources(data), out, Budget(3, None))["step"] == 3


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried")]
)
def test_out_of_memory_names_the_setting(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(Trainer, "update", fail)
    with pytest.raises(ConfigError, match="batch of 2: lower `batch`"):
        train(SETTINGS, Sources(data), tmp_path / "out", Budget(2, None))


def test_ctrl_c_stops_after_a_checkpoint(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usual = Trainer.update

    def update(self: Trainer, done: float) -> None:
        usual(self, done)
        if self.step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Trainer, "update", update)
    result = train(SETTINGS, Sources(data), tmp_path / "out", Budget(100, None))
    assert result["exit_code"] == 130
    world_model.show(result)
    assert "Stopped after update 2" in capsys.readouterr().out
    assert checkpointing.load_state(tmp_path / "out" / "state.safetensors")[1]["step"] == 2


def test_patience_ends_the_run_and_the_best_checkpoint_is_kept(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = iter([(0.9, 20.0), (0.2, 20.0), (0.2, 20.0), (0.2, 20.0)])
    weights: dict[int, Any] = {}
    usual = world_model_run.validate

    def validate(model: Any, held: Any, blind: Any, count: int, step: int) -> Any:
        verdict, *rest = usual(model, held, blind, count, step)
        weights.setdefault(step, {name: t.clone() for name, t in model.state_dict().items()})
        accuracy, psnr = next(told, (0.0, 0.0))
        return (replace(verdict, accuracy=accuracy, psnr=psnr, episodes=50), *rest)

    monkeypatch.setattr(world_model_run, "validate", validate)
    settings = replace(SETTINGS, validate_seconds=0.0, patience=2, validation_episodes=2)
    out = tmp_path / "out"
    result = train(settings, Sources(data, data), out, Budget(100, None))
    assert result["step"] == 3
    assert result["kept"]["step"] == 1
    kept, last = load_world_model(out).state_dict(), load_world_model(out / "last").state_dict()
    for name, tensor in kept.items():
        assert torch.equal(tensor, weights[1][name].bfloat16().float())
        assert torch.equal(last[name], weights[3][name].bfloat16().float())
    # All of it is to be seen: curves, pictures and videos; and a finished run is not done again.
    assert list((out / "tensorboard").glob("events*"))
    assert len(list(out.glob("validation*/*.mp4"))) == 8
    assert train(settings, Sources(data, data), out, Budget(100, None)) == json.loads(json.dumps(result))


def test_lora_needs_a_checkpoint(data: Path, tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    world_model.add_arguments(parser)
    args = parser.parse_args(["--data", str(data), "--out", str(tmp_path / "out"), "--lora", "4"])
    with pytest.raises(ConfigError, match="--from"):
        world_model.run(args)


def test_a_damaged_state_is_named(data: Path, tmp_path: Path) -> None:
    train(SETTINGS, Sources(data), tmp_path / "out", Budget(1, None))
    state = tmp_path / "out" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-64])
    with pytest.raises(CheckpointError, match="delete it to start anew"):
        train(SETTINGS, Sources(data), tmp_path / "out", Budget(2, None))
