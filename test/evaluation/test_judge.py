"""`wvl evaluate judge`: the confusion matrix of a judge on what is known, and that a useless one is called so."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from wvl_ros.cli import main
from wvl_ros.sans.episode import Episode


@pytest.fixture
def data(tmp_path: Path, make_episode: Callable[..., Episode]) -> Path:
    """Dreams that a person has judged, what the head said of them, and episodes that nobody has."""
    cases = [("success", 0.9)] * 6 + [("success", 0.15)] * 2 + [("failure", 0.8)] + [("near_success", 0.1)] * 7
    cases += [("", 0.9)] * 3
    for seed, (outcome, chance) in enumerate(cases):
        told_by = "operator" if outcome else ""
        episode = make_episode(steps=13, seed=seed, outcome=outcome, source="policy/imagined")
        chances = [0.0, *[chance] * 4]  # longer than the shipped model's run of frames
        replace(episode, outcome_source=told_by, extra={"success_probability": chances}).save(
            tmp_path / "data" / f"{seed:02}.safetensors"
        )
    return tmp_path / "data"


def test_it_prints_the_confusion_matrix_and_the_rates(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["evaluate", "judge", "--judge", "reward_head", "--data", str(data)]
    assert main([*command, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["matrix"] == {"tp": 6, "fp": 1, "fn": 2, "tn": 7}
    assert result["precision"]["value"] == pytest.approx(6 / 7, abs=1e-4)
    assert result["recall"] == {"value": 0.75, "interval_95": [0.4093, 0.9285], "hits": 6, "trials": 8}
    assert (result["imagined"], result["left_out"], result["useless"]) == (16, 3, "")
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert [line.split() for line in printed.splitlines() if line.startswith("true")] == [
        ["true", "successes", "6", "2"],
        ["true", "failures", "1", "7"],
    ]
    assert "recall                        75% (41% to 93%, 6 of 8)" in printed
    assert "16 of them imagined" in printed or "16 episodes, 16 of them imagined" in printed
    assert "3 episodes without a known outcome were left out." in printed


def test_a_judge_that_always_says_yes_is_called_useless(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "judge", "--judge", "reward_head", "--threshold", "0.05", "--data", str(data)]) == 0
    printed = capsys.readouterr().out
    assert "Of no use: The judge 'reward_head' says yes to all 8 failures (threshold 0.05)" in printed


def test_those_who_know_are_right_of_course(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "judge", "--judge", "operator", "--data", str(data), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["matrix"] == {"tp": 8, "fp": 0, "fn": 0, "tn": 8}


def test_bad_input_is_one_sentence(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unknown = data.parent / "unknown"
    unknown.mkdir()
    for seed in (16, 17, 18):
        (data / f"{seed}.safetensors").rename(unknown / f"{seed}.safetensors")
    for arguments, sentence in (
        (["operator", "--data", str(unknown)], "None of the 3 episodes has a known outcome"),
        (["ground_truth", "--data", str(data)], "imagination has no ground truth"),
        (["vlm", "--data", str(data)], "The judge 'vlm' needs a checkpoint"),
        (["operator", "--data", str(data), "--device", "cpu"], "The judge 'operator' has no setting 'device'"),
        (["reward_head", "--data", str(data), "--checkpoint", "none"], "no world model checkpoint 'none'"),
        (["reward_head", "--data", str(data), "--threshold", "2"], "threshold must lie in 0..1"),
    ):
        assert main(["evaluate", "judge", "--judge", *arguments]) == 2
        told = capsys.readouterr().err
        assert sentence in told
        assert "Traceback" not in told
