"""`wvl evaluate policy`: reproducible closed-loop figures, and one clear sentence for bad input."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch

from wvl_ros.errors import CheckpointError, ConfigError, UnknownNameError
from wvl_ros.evaluation import policy as evaluation
from wvl_ros.evaluation.policy import Result, summarise
from wvl_ros.policies.network import PolicyConfig
from wvl_ros.policies.small import SmallPolicy


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
    push = alone["tasks"]["push"]
    assert push["episodes"] == 3
    assert sum(variant["episodes"] for variant in push["variants"].values()) == 3
    assert push["interval_95"][0] <= push["success_rate"] <= push["interval_95"][1]
    evaluation.show(alone)
    assert "push" in capsys.readouterr().out


def test_held_out_wordings_are_not_those_of_training(fresh: Path) -> None:
    words = ("--checkpoint", fresh, "--task", "pick_place", "--episodes", 1, "--workers", 1, "--variant", "single")
    usual, held_out = evaluate(*words), evaluate(*words, "--held-out")
    assert usual["episodes"][0]["variant"] == held_out["episodes"][0]["variant"] == "single"
    assert usual["episodes"][0]["instruction"] != held_out["episodes"][0]["instruction"]


def test_the_shipped_policy_picks_and_places() -> None:
    """Seeds of its validation: a tenth of the figure in the README would show a broken input or output."""
    result = evaluate("--task", "pick_place", "--variant", "single", "--seed", 900_000, "--episodes", 6, "--workers", 1)
    assert result["tasks"]["pick_place"]["successes"] >= 1


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
    with pytest.raises(ConfigError, match="multiple of 3"):
        evaluate("--checkpoint", fresh, "--episodes", 1, "--execute-steps", 5, "--task", "push", "--workers", 1)
    (fresh / "model.safetensors").rename(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="missing"):
        evaluate("--checkpoint", fresh)
