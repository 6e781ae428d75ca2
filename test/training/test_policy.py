"""`wvl train policy`: it learns, it resumes exactly, and it refuses bad settings in one sentence."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from wvl_ros.checkpoints import find
from wvl_ros.errors import CheckpointError, ConfigError, EpisodeError, UnknownNameError
from wvl_ros.policies.network import Inputs
from wvl_ros.policies.small import SmallPolicy
from wvl_ros.policies.tokenizer import WordTokenizer
from wvl_ros.sans.collect import collect_episode
from wvl_ros.sans.episode import Episode
from wvl_ros.training import policy as training
from wvl_ros.training.demonstrations import collect
from wvl_ros.training.grpo import GRPOSettings
from wvl_ros.training.settings import read_settings
from wvl_ros.world_model.loading import save_world_model
from wvl_ros.world_model.model import WorldModel
from wvl_ros.worlds.tabletop import TabletopWorld

SMALL = "policy: {channels: 8, keypoints: 8, hidden: 64}\nwarmup_steps: 10\n"
SEARCHING = SMALL.replace("}", ", place_channels: 16, cameras: [exterior_image_1_left, wrist_image_left]}")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demonstrations")
    collect(folder, ["pick_place", "push"], 4)
    return folder


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path


def train(*words: object) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    training.add_arguments(parser)
    return training.run(parser.parse_args([str(word) for word in words]))


def test_it_learns_and_writes_a_checkpoint(data: Path, config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = train("--data", data, "--out", out, "--config", config, "--steps", 200)
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [100, 200]
    assert lines[-1]["loss"] < 0.7 * lines[0]["loss"]
    assert result["losses"] == pytest.approx({k: lines[-1][k] for k in result["losses"]}, abs=1e-4)
    policy = SmallPolicy.from_pretrained(out)
    assert "cube" in policy.config.vocabulary
    training.show(result)


@pytest.mark.parametrize("settings", [SMALL, SEARCHING, SEARCHING + "search_share: 0.75\n"])
def test_a_stopped_training_goes_on_exactly(
    settings: str, data: Path, config: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    config.write_text(settings)
    words = ("--data", data, "--config", config, "--steps", 24)
    train(*words, "--out", tmp_path / "whole")
    update = training.SupervisedTrainer._update

    def stop_at_ten(self: training.SupervisedTrainer, progress: float) -> dict[str, float]:
        if self.step == 10:
            self.save()
            raise KeyboardInterrupt
        return update(self, progress)

    with monkeypatch.context() as patch:
        patch.setattr(training.SupervisedTrainer, "_update", stop_at_ten)
        with pytest.raises(KeyboardInterrupt):
            train(*words, "--out", tmp_path / "parts")
    assert not (tmp_path / "parts" / "model.safetensors").exists()
    result = train(*words, "--out", tmp_path / "parts")
    assert result["steps"] == 24
    one, other = (SmallPolicy.from_pretrained(tmp_path / name).network.state_dict() for name in ("whole", "parts"))
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def test_it_can_start_from_a_checkpoint(data: Path, config: Path, tmp_path: Path) -> None:
    train("--data", data, "--out", tmp_path / "first", "--config", config, "--steps", 2)
    train("--data", data, "--out", tmp_path / "second", "--init", tmp_path / "first", "--steps", 2)
    first, second = (SmallPolicy.from_pretrained(tmp_path / name) for name in ("first", "second"))
    assert first.config == second.config
    with pytest.raises(CheckpointError, match="another model"):
        train("--data", data, "--out", tmp_path / "second", "--steps", 4)


def test_bad_settings_are_named(data: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    for text, sentence in (
        ("batch: 3", "unknown setting 'batch'"),
        ("policy: {depth: 3}", "unknown setting 'depth'"),
        ("batch_size: 0", "batch_size must be positive"),
        ("batch_size: many", "wrong type"),
        ("word_dropout: 1.5", "word_dropout must be in"),
        ("opposites: [[red]]", "opposites must be pairs of words"),
        ("search_share: 1.0", "search_share must be in"),
        ("[1, 2]", "should be a mapping"),
        ("a: [", "cannot be read"),
    ):
        bad.write_text(text)
        with pytest.raises(ConfigError, match=sentence):
            train("--data", data, "--out", tmp_path / "out", "--config", bad)
    with pytest.raises(ConfigError, match="--steps must be positive"):
        train("--data", data, "--out", tmp_path / "out", "--steps", 0)
    with pytest.raises(EpisodeError, match="holds no episodes"):
        train("--data", tmp_path / "nowhere", "--out", tmp_path / "out", "--steps", 1)


def test_the_shipped_configuration_is_the_default() -> None:
    path = Path(__file__).parents[2] / "config" / "policy_small.yaml"
    assert training.TrainConfig.from_yaml(path) == training.TrainConfig()


def test_a_policy_that_searches_learns_where_its_cameras_look_and_then_to_act(data: Path, tmp_path: Path) -> None:
    shipped = training.TrainConfig.from_yaml(Path(__file__).parents[2] / "config" / "policy_searching.yaml")
    assert shipped.policy.place_channels > 0
    config, halved = tmp_path / "searching.yaml", tmp_path / "halved.yaml"
    config.write_text(SEARCHING + "search_share: 0.5\n")
    out = tmp_path / "out"
    result = train("--data", data, "--out", out, "--config", config, "--steps", 600)
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    searching, acting = lines[:3], lines[3:]
    assert {"places", "hand", "misnamed", "loss"} < set(searching[0])
    assert searching[-1]["hand"] < searching[0]["hand"] - 0.5
    assert searching[-1]["places"] < searching[0]["places"] - 0.5
    assert set(result["losses"]) == {"velocity", "gripper", "places", "loss"}
    assert acting[-1]["loss"] < 0.8 * acting[0]["loss"]
    # What finds the places is not changed any more by what is done there.
    halved.write_text(SEARCHING + "search_share: 0.75\n")
    train("--data", data, "--out", tmp_path / "shorter", "--config", halved, "--steps", 400)
    networks = [SmallPolicy.from_pretrained(folder).network for folder in (out, tmp_path / "shorter")]
    finders, heads = ([getattr(network, part).state_dict() for network in networks] for part in ("finder", "head"))
    assert all(torch.equal(finders[0][name], finders[1][name]) for name in finders[0])
    assert any(not torch.equal(heads[0][name], heads[1][name]) for name in heads[0])


def test_finding_has_a_rate_of_its_own(data: Path, tmp_path: Path) -> None:
    def fitted(name: str, rate: str) -> SmallPolicy:
        config = tmp_path / f"{name}.yaml"
        config.write_text(SEARCHING + f"search_share: 0.5\nsearch_rate: {rate}\nsearch_decay: 0.0\n")
        train("--data", data, "--out", tmp_path / name, "--config", config, "--steps", 8)
        return SmallPolicy.from_pretrained(tmp_path / name)

    def change(policy: SmallPolicy, part: str) -> float:
        now = getattr(policy.network, part).state_dict()
        return max(float((tensor - now[name]).abs().max()) for name, tensor in first[part].items())

    still, moved = fitted("still", "1.0e-12"), fitted("moved", "1.0e-3")
    torch.manual_seed(0)
    fresh = SmallPolicy(still.config).network
    first = {part: getattr(fresh, part).state_dict() for part in ("finder", "names", "head")}
    for part in ("finder", "names"):
        assert change(still, part) < 1e-8 < 1e-4 < change(moved, part)
    assert min(change(still, "head"), change(moved, "head")) > 1e-4


def test_acting_is_learned_elsewhere_on_the_table_too_and_afresh_where_that_is_asked(
    data: Path, tmp_path: Path
) -> None:
    def fitted(name: str, *words: object, **settings: object) -> dict[str, torch.Tensor]:
        config = tmp_path / f"{name}.yaml"
        lines = [f"{key}: {str(value).lower()}\n" for key, value in settings.items()]
        config.write_text(SEARCHING + "".join(lines))
        train("--data", data, "--out", tmp_path / name, "--config", config, "--steps", 4, *words)
        return SmallPolicy.from_pretrained(tmp_path / name).network.state_dict()

    def alike(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], part: str) -> bool:
        return all(torch.equal(tensor, other[name]) for name, tensor in one.items() if name.startswith(part))

    plain = fitted("plain", search_share=0.5, shift=0.0, jolt=0)
    for name, settings in (("shifted", {"shift": 0.1, "jolt": 0}), ("jolted", {"shift": 0.0, "jolt": 2})):
        other = fitted(name, search_share=0.5, **settings)
        assert alike(plain, other, "finder")
        assert not alike(plain, other, "head")
    still: dict[str, object] = {"learning_rate": "1.0e-12", "weight_decay": 0.0, "search_share": 0.5, "seed": 3}
    again, afresh = (
        fitted(f"afresh_{word}", "--init", tmp_path / "plain", act_afresh=word, **still) for word in (False, True)
    )
    near = {name: float((again[name] - plain[name]).abs().max()) for name in plain if name.startswith("head")}
    assert max(near.values()) < 1e-6
    assert alike(again, afresh, "finder")
    assert float((afresh["head.0.weight"] - plain["head.0.weight"]).abs().max()) > 1e-2


def test_what_teaches_to_find_need_not_be_what_teaches_to_act(data: Path, tmp_path: Path) -> None:
    config = tmp_path / "searching.yaml"
    config.write_text(SEARCHING + "search_share: 0.5\nword_dropout: 0\n")
    settings = training.TrainConfig.from_yaml(config)
    policy, samples = training._prepare(None, settings, [data])
    named: dict[str, set[int]] = {"finding": set(), "acting": set()}
    chances = np.zeros((2, len(samples)))
    chances[0, samples.task == 0] = chances[1, samples.task == 1] = 1.0
    trainer = training.SupervisedTrainer(policy, samples, settings, tmp_path / "out", *chances)
    inputs = samples.inputs

    def watch(rows: np.ndarray, tokenizer: WordTokenizer) -> Inputs:
        if len(rows) == settings.batch_size:  # not those whose places are looked up between the two
            named["finding" if trainer.searched == trainer.step + 1 else "acting"] |= set(samples.task[rows])
        return inputs(rows, tokenizer)

    samples.inputs = watch  # type: ignore[method-assign]
    trainer.fit(steps=6)
    assert named == {"finding": {1}, "acting": {0}}


def test_a_flow_head_is_trained_by_the_same_command_but_not_by_grpo(data: Path, tmp_path: Path) -> None:
    config = tmp_path / "flow.yaml"
    config.write_text("policy: {channels: 8, keypoints: 8, hidden: 64, head: flow}\nwarmup_steps: 10\n")
    out = tmp_path / "out"
    result = train("--data", data, "--out", out, "--config", config, "--steps", 100)
    assert set(result["losses"]) == {"flow", "places", "loss"}
    assert SmallPolicy.from_pretrained(out).config.head == "flow"
    words = ("--method", "grpo", "--data", data, "--out", tmp_path / "grpo")
    with pytest.raises(ConfigError, match="gaussian head"):
        train(*words, "--init", out)
    with pytest.raises(ConfigError, match="--init"):
        train(*words)


def test_grpo_settings_are_read_from_a_file(data: Path, tmp_path: Path) -> None:
    config = tmp_path / "grpo.yaml"
    config.write_text("group_sise: 4\n")
    words = ("--method", "grpo", "--data", data, "--out", tmp_path / "out", "--init", "small", "--config", config)
    with pytest.raises(ConfigError, match="group_sise"):
        train(*words)
    assert read_settings(GRPOSettings, Path("config/policy_grpo.yaml")) == GRPOSettings()


def test_practice_in_the_tabletop_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world = TabletopWorld("pick_place", 64, 64)
    for seed in range(3):
        collect_episode(world, "pick_place", seed, steps=1).save(tmp_path / "data" / f"{seed}.safetensors")
    config = tmp_path / "grpo.yaml"
    config.write_text("{groups: 3, group_size: 4, temperature: 3.0, check_every: 0}\n")
    words = ("--method", "grpo", "--world", "tabletop", "--data", tmp_path / "data", "--init", "small")
    words += ("--config", config, "--updates", 1, "--workers", 2)
    result = train(*words, "--out", tmp_path / "out")
    assert 0 < result["tabletop_success"] < 1
    assert result["rollouts"] % 4 == 0
    training.show(result)
    assert f"1 updates after {result['rollouts']} tabletop rollouts" in capsys.readouterr().out
    before, after = (SmallPolicy.from_pretrained(find("policy", name)) for name in ("small", str(tmp_path / "out")))
    assert not torch.equal(before.network.head[0].weight, after.network.head[0].weight)
    with pytest.raises(ConfigError, match="leave --world-model out"):
        train(*words, "--out", tmp_path / "other", "--world-model", "small")
    with pytest.raises(ConfigError, match="leave --denoising-steps out"):
        train(*words, "--out", tmp_path / "other", "--denoising-steps", 2)


def test_an_option_of_another_method_is_refused(data: Path, tmp_path: Path) -> None:
    words = ("--data", data, "--out", tmp_path / "out", "--init", "small")
    with pytest.raises(ConfigError, match="--updates belongs to --method grpo, not to sft"):
        train(*words, "--updates", 3)
    with pytest.raises(ConfigError, match="--minutes belongs to --method sft, not to vlaw"):
        train(*words, "--method", "vlaw", "--minutes", 3)
    with pytest.raises(ConfigError, match="'ground_truth' cannot say how imagined rollouts end"):
        train(*words, "--method", "vlaw", "--judge", "ground_truth")


def test_practice_starts_from_episodes_of_the_world_model_s_rig_alone(
    make_episode: Callable[..., Episode], tmp_path: Path
) -> None:
    make_episode(source="teleop/droid").save(tmp_path / "data" / "0.safetensors")
    words = ("--data", tmp_path / "data", "--out", tmp_path / "out", "--init", "small")
    for method in ("grpo", "vlaw"):
        with pytest.raises(EpisodeError, match=r"None of the 1 episodes .* is of the world model's rig 'tabletop'"):
            train(*words, "--method", method)


def test_a_chunk_that_is_no_whole_number_of_the_model_s_calls_is_refused(
    make_episode: Callable[..., Episode], tmp_path: Path
) -> None:
    make_episode().save(tmp_path / "data" / "0.safetensors")
    model = WorldModel(image_size=32, channels=8, condition_dim=16, instruction_dim=8, actions_per_frame=4)
    save_world_model(model, tmp_path / "model")
    words = ("--data", tmp_path / "data", "--out", tmp_path / "out", "--init", "small", "--method", "grpo")
    with pytest.raises(ConfigError, match="executes 6 steps of a chunk, but the world model imagines 4"):
        train(*words, "--world-model", tmp_path / "model")


def test_vlaw_distrusts_a_judge_that_says_the_same_of_all(
    make_episode: Callable[..., Episode], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pictures of noise are no success to any reward head, whatever their label says."""
    for i in range(12):
        episode = replace(make_episode(seed=i, outcome=("success", "failure")[i % 2]), outcome_source="world")
        episode.save(tmp_path / "data" / f"{i}.safetensors")
    words = ("--method", "vlaw", "--data", tmp_path / "data", "--out", tmp_path / "out", "--init", "small")
    with pytest.raises(ConfigError, match="judge"):
        train(*words, "--rollouts", 2, "--steps", 2)
    assert "recall 0%" in capsys.readouterr().err
    assert not (tmp_path / "out" / "model.safetensors").exists()
    result = train(*words, "--steps", 2, "--learn-from", "real")
    assert (result["steps"], result["real_episodes"], result["accepted"]) == (2, 6, {})
    SmallPolicy.from_pretrained(tmp_path / "out")
    training.show(result)


def test_vlaw_imagines_from_starts_that_need_not_teach(make_episode: Callable[..., Episode], tmp_path: Path) -> None:
    for name, source in (("droid", "teleop/droid"), ("tabletop", "policy/tabletop")):
        make_episode(source=source).save(tmp_path / name / "0.safetensors")
    words = ("--method", "vlaw", "--out", tmp_path / "out", "--init", "small")
    with pytest.raises(EpisodeError, match="is of the world model's rig 'tabletop'"):
        train(*words, "--data", tmp_path / "tabletop", "--starts", tmp_path / "droid")
    result = train(
        *words, "--data", tmp_path / "droid", "--starts", tmp_path / "tabletop", "--steps", 2, "--learn-from", "real"
    )
    assert result["real_episodes"] == 1


def test_starts_of_a_task_that_no_episode_has_are_refused(make_episode: Callable[..., Episode], tmp_path: Path) -> None:
    make_episode().save(tmp_path / "data" / "0.safetensors")
    words = ("--data", tmp_path / "data", "--out", tmp_path / "out", "--init", "small", "--method", "grpo")
    with pytest.raises(UnknownNameError, match="no task among the episodes called 'sweep'; choose one of: pick_place"):
        train(*words, "--tasks", "pick_place", "sweep")
