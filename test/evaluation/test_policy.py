"""`wvl evaluate policy`: reproducible closed-loop figures, and one clear sentence for bad input."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import scipy.stats
import torch

from wvl_ros.errors import CheckpointError, ConfigError, UnknownNameError
from wvl_ros.evaluation import policy as evaluation
from wvl_ros.evaluation.closed_loop import Result
from wvl_ros.evaluation.policy import compare, summarise
from wvl_ros.policies.network import PolicyConfig
from wvl_ros.policies.small import SmallPolicy
from wvl_ros.worlds.tasks import TASKS


def evaluate(*words: object) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    evaluation.add_arguments(parser)
    return evaluation.run(parser.parse_args([str(word) for word in words]))


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fresh")
    torch.manual_seed(0)
    SmallPolicy(PolicyConfig(channels=8, keypoints=8, hidden=32)).save_pretrained(folder)
    return folder


def test_figures_do_not_depend_on_the_number_of_processes(fresh: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--checkpoint", fresh, "--task", "push", "--seed", 900_000, "--episodes", 3)
    alone = evaluate(*words, "--workers", 1)
    assert alone == evaluate(*words, "--workers", 2)
    push = alone[str(fresh)]["tasks"]["push"]
    assert push["episodes"] == 3
    assert sum(variant["episodes"] for variant in push["variants"].values()) == 3
    assert push["interval_95"][0] <= push["success_rate"] <= push["interval_95"][1]
    evaluation.show(alone)
    assert "push" in capsys.readouterr().out


@pytest.mark.parametrize("world", ["tabletop", "imagined"])
def test_every_start_in_seen_and_unseen_words(fresh: Path, world: str) -> None:
    words = ("--task", "pick_place", "--episodes", 2, "--workers", 1, "--variant", "single", "--seed", 900_000)
    found = evaluate("--checkpoint", fresh, *words, "--wording", "both", "--world", world)[str(fresh)]
    seen, unseen = found["results"][:2]
    assert (seen["unseen"], unseen["unseen"]) == (False, True)
    assert seen["variant"] == unseen["variant"] == "single"
    assert seen["seed"] == unseen["seed"]
    assert seen["instruction"] != unseen["instruction"]
    assert {name: rate["episodes"] for name, rate in found["wordings"].items()} == {"seen": 2, "unseen": 2}
    assert found["world"] == world


def test_imagined_episodes_are_the_same_each_time_and_last_no_longer_than_real_ones(fresh: Path) -> None:
    words = ("--task", "push", "--episodes", 3, "--seed", 900_000, "--world", "imagined")
    found = evaluate("--checkpoint", fresh, *words)
    assert found == evaluate("--checkpoint", fresh, *words)
    assert all(0 < result["steps"] <= TASKS["push"].max_steps for result in found[str(fresh)]["results"])


def test_policies_are_compared_start_by_start(fresh: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--task", "pick_place", "--variant", "single", "--seed", 900_000, "--episodes", 4, "--workers", 2)
    found = evaluate("--checkpoint", fresh, "--checkpoint", "small", *words)
    assert list(found) == [str(fresh), "small"]
    gain = found["small"]["gain"]
    expected = found["small"]["success_rate"] - found[str(fresh)]["success_rate"]
    assert gain["success_rate"] == gain["tasks"]["pick_place"] == pytest.approx(expected)
    evaluation.show(found)
    assert "on the same starts" in capsys.readouterr().out


def test_mcnemar_s_exact_test() -> None:
    def results(successes: str) -> list[Result]:
        outcomes = {"1": "success", "0": "failure"}
        return [Result("push", i, "single", "", outcomes[mark], 1) for i, mark in enumerate(successes)]

    gain = compare(results("0000000011"), results("1111110001"))
    assert (gain["gained"], gain["lost"], gain["success_rate"]) == (6, 1, 0.5)
    assert gain["p"] == pytest.approx(scipy.stats.binomtest(1, 7).pvalue)
    assert compare(results("01"), results("01"))["p"] == 1.0


def test_the_shipped_policy_picks_and_places() -> None:
    """Seeds of its validation: a tenth of the figure in the README would show a broken input or output."""
    result = evaluate("--task", "pick_place", "--variant", "single", "--seed", 900_000, "--episodes", 6, "--workers", 1)
    assert result["small"]["tasks"]["pick_place"]["successes"] >= 1


def test_summary_counts_by_task_and_variant() -> None:
    results = [
        Result("push", 0, "single", "push it", "success", 40),
        Result("push", 1, "single", "push it", "near_success", 110),
        Result("push", 2, "two_goals", "push it", "success", 60),
        Result("stack", 0, "single", "stack it", "failure", 90),
    ]
    tasks = summarise(results)
    assert tasks["push"]["successes"] == 2
    assert tasks["push"]["near_success"] == 1
    assert tasks["push"]["mean_steps_to_success"] == 50.0
    assert tasks["push"]["variants"]["single"]["success_rate"] == 0.5
    assert tasks["stack"]["mean_steps_to_success"] is None


def test_bad_input_is_named(fresh: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="no task called 'fold'"):
        evaluate("--checkpoint", fresh, "--task", "fold")
    with pytest.raises(CheckpointError):
        evaluate("--checkpoint", tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="--episodes"):
        evaluate("--checkpoint", fresh, "--episodes", 0)
    with pytest.raises(ConfigError, match="given twice"):
        evaluate("--checkpoint", fresh, "--checkpoint", fresh)
    with pytest.raises(ConfigError, match="--execute-steps is for the tabletop"):
        evaluate("--checkpoint", fresh, "--world", "imagined", "--execute-steps", 3)
    with pytest.raises(ConfigError, match="--denoising-steps belongs to --world imagined"):
        evaluate("--checkpoint", fresh, "--denoising-steps", 2)
    with pytest.raises(ConfigError, match="multiple of 3"):
        evaluate("--checkpoint", fresh, "--episodes", 1, "--execute-steps", 5, "--task", "push", "--workers", 1)
    (fresh / "model.safetensors").rename(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="missing"):
        evaluate("--checkpoint", fresh)
