"""Fine-tuning a vision-language judge: it learns bright from dark, goes on exactly where it was, and is measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from wvl_ros.cli import main
from wvl_ros.errors import ConfigError
from wvl_ros.rewards.quality import measure
from wvl_ros.rewards.vlm.judge import VlmJudge
from wvl_ros.rewards.vlm.settings import VlmSettings
from wvl_ros.sans.episode import Episode
from wvl_ros.sans.episodes import EpisodeEntry, list_episodes
from wvl_ros.training.judge_trainer import JudgeTrainer, JudgeTraining
from wvl_ros.training.processes import Processes

SMALL: dict[str, Any] = {
    "question": "{instruction}?", "frames": 2, "min_pixels": 3136, "max_pixels": 4096, "threshold": 0.5,
}  # fmt: skip


@pytest.fixture
def toy(tmp_path: Path, make_episode: Callable[..., Episode]) -> Callable[..., list[EpisodeEntry]]:
    """Episodes of which the bright ones are successes, in a folder."""

    def make(name: str, first: int, count: int) -> list[EpisodeEntry]:
        for seed in range(first, first + count):
            bright = seed % 2 == 0
            episode = make_episode(
                steps=7,
                seed=seed,
                instruction="push",
                outcome="success" if bright else ("failure", "near_success")[seed % 4 // 2],
            )
            for stack in episode.images.values():
                stack[:] = stack // 6 + (190 if bright else 10)
            episode.outcome_source = "world"
            episode.save(tmp_path / name / f"{seed:03}.safetensors")
        return list_episodes(tmp_path / name)

    return make


def judge_of(folder: Path, **changes: Any) -> VlmJudge:
    return VlmJudge.from_pretrained(folder, **(SMALL | changes))


def accuracy(judge: VlmJudge, entries: list[EpisodeEntry]) -> float:
    quality = measure(judge, (entry.load() for entry in entries))
    return (quality.tp + quality.tn) / quality.episodes


@pytest.mark.parametrize(("family", "lora"), [("qwen3_vl", 8), ("qwen2_5_vl", 0)])
def test_it_learns_bright_from_dark_and_its_checkpoint_says_the_same(
    make_vlm: Callable[..., Path],
    toy: Callable[..., list[EpisodeEntry]],
    tmp_path: Path,
    family: str,
    lora: int,
) -> None:
    # An adapter cannot make so small a model with a random last layer say yes or no; only how it weighs the two.
    judge = judge_of(make_vlm(family), least_mass=0.0 if lora else 0.1)
    data, held, out = toy("data", 0, 12), toy("held", 100, 12), tmp_path / "out"
    before = accuracy(judge, held)
    frozen = judge.qwen.model.get_input_embeddings().weight.detach().clone()
    trainer = JudgeTrainer(judge, data, JudgeTraining(25, 4, lora, 2e-2 if lora else 7e-3), out)
    after, noted = trainer.fit(held)
    assert before <= 0.5
    assert after is not None
    assert noted is not None
    assert noted["matrix"]["tp"] + noted["matrix"]["tn"] == before * 12
    assert (after.tp, after.tn) == (6, 6)
    loaded = VlmJudge.from_pretrained(out)
    assert loaded.settings == judge.settings
    episodes = [entry.load() for entry in held]
    np.testing.assert_allclose(loaded.answers(episodes).yes, judge.answers(episodes).yes, atol=1e-5)
    assert accuracy(loaded, held) == 1.0
    same = torch.equal(loaded.qwen.model.get_input_embeddings().weight, frozen)
    assert same == bool(lora)
    assert (out / "adapter" / "adapter_model.safetensors").is_file() == bool(lora)
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in log] == ["before", "train", "train", "train", "after"]
    assert log[1]["loss"] > log[3]["loss"]


class Stopped(JudgeTrainer):
    """Killed before update 3."""

    def _update(self) -> None:
        if self.step == 3:
            raise KeyboardInterrupt
        super()._update()


@pytest.mark.parametrize("lora", [4, 0])
def test_a_stopped_training_goes_on_bit_for_bit(
    make_vlm: Callable[..., Path], toy: Callable[..., list[EpisodeEntry]], tmp_path: Path, lora: int
) -> None:
    start, data, held = make_vlm(), toy("data", 0, 6), toy("held", 100, 2)
    settings = JudgeTraining(6, 3, lora, 1e-2, save_every=0.0)
    whole = JudgeTrainer(judge_of(start), data, settings, tmp_path / "whole").fit(held)
    with pytest.raises(KeyboardInterrupt):
        Stopped(judge_of(start), data, settings, tmp_path / "parts").fit(held)
    trainer = JudgeTrainer(judge_of(start), data, settings, tmp_path / "parts")
    assert trainer.step == 3
    assert trainer.fit(held) == whole
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    changed = load_file(start / "model.safetensors")
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert any(not torch.equal(one[name], changed[name]) for name in one)
    steps = [json.loads(line)["step"] for line in (tmp_path / "parts" / "log.jsonl").read_text().splitlines()]
    assert steps == [0, 6, 6]
    again = JudgeTrainer(judge_of(start), data, settings, tmp_path / "parts")
    again.fit(held)  # nothing is left to do
    assert again.step == 6
    with pytest.raises(ConfigError, match="another model or rank of LoRA"):
        JudgeTrainer(judge_of(start), data, JudgeTraining(6, 3, 2), tmp_path / "parts")


def test_the_shares_of_two_processes_make_the_same_gradient_as_one(
    make_vlm: Callable[..., Path], toy: Callable[..., list[EpisodeEntry]], tmp_path: Path
) -> None:
    start, data = make_vlm(), toy("data", 0, 6)

    class Half(Processes):
        """One of two; what the other says is not waited for."""

        average_gradients = wait = copy_from_main = lambda *_: None

        def sum(self, values: Any) -> list[float]:
            return list(values)

    gradients = []
    for processes in (Processes(), Half(0, 2), Half(1, 2)):
        judge = judge_of(start)
        trainer = JudgeTrainer(judge, data, JudgeTraining(2, 4, 4), tmp_path / str(len(gradients)), processes)
        trainer.descent.finish = lambda *_: None  # type: ignore[method-assign]
        trainer._update()
        grads = {name: p.grad for name, p in trainer.trained.items() if p.grad is not None}
        gradients.append(grads)
    one, left, right = gradients
    for name, gradient in one.items():
        torch.testing.assert_close((left[name] + right[name]) / 2, gradient)
    assert any(not torch.allclose(left[name], right[name]) for name in one)


def test_batches_hold_both_outcomes_alike_and_follow_from_the_seed(
    make_vlm: Callable[..., Path], toy: Callable[..., list[EpisodeEntry]], tmp_path: Path
) -> None:
    entries = toy("data", 0, 8) + toy("more", 101, 1) + toy("last", 103, 1)  # 4 successes, 6 failures
    trainer = JudgeTrainer(judge_of(make_vlm()), entries, JudgeTraining(9, 5, 4), tmp_path / "out")
    counts = []
    for step in range(40):
        rows = trainer.batch(step)
        assert np.array_equal(rows, trainer.batch(step))
        counts.append(sum(trainer.entries[row].outcome == "success" for row in rows))
        assert len(rows) == 5
    assert set(counts) == {2, 3}


def test_commands_train_and_measure(
    make_vlm: Callable[..., Path],
    toy: Callable[..., list[EpisodeEntry]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    start, out, data = make_vlm(), tmp_path / "out", tmp_path / "data"
    toy("data", 0, 12)
    toy("held", 100, 12)
    VlmSettings().changed(**SMALL).write(start)
    command = ["train", "judge", "--data", str(data), "--from", str(start), "--out", str(out), "--lora", "0"]
    command += ["--steps", "25", "--batch", "4", "--learning-rate", "7e-3", "--validation", str(tmp_path / "held")]
    assert main([*command, "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "Trained 25 updates" in printed
    assert "Before: Judge 'vlm' (success above 0.5) on 12 episodes" in printed
    assert "After: Judge 'vlm' (success above 0.5) on 12 episodes of known outcome: precision 100%" in printed
    measuring = ["evaluate", "judge", "--judge", "vlm", "--data", str(tmp_path / "held"), "--checkpoint"]
    assert main([*measuring, str(out), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["matrix"] == {"tp": 6, "fp": 0, "fn": 0, "tn": 6}
    assert result["answers"]["abstained"] == 0
    assert result["answers"]["mean_mass"] > 0.1
    assert result["useless"] == ""
    assert main([*measuring, str(start)]) == 0
    printed = capsys.readouterr().out
    assert "It abstained from 12 of 12; yes and no together had a probability of 0.0" in printed
    assert "Of no use: The judge 'vlm' says no to all 6 successes" in printed
