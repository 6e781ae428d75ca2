"""`wvl train judge` refuses what cannot be learned from, before it loads a model. See test/rewards/vlm for the rest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from wvl_ros.cli import main
from wvl_ros.errors import ConfigError
from wvl_ros.sans.episode import Episode
from wvl_ros.training.judge_trainer import JudgeTrainer, JudgeTraining


@pytest.fixture
def save(tmp_path: Path, make_episode: Callable[..., Episode]) -> Callable[..., str]:
    """Saves episodes of these outcomes in a folder, told by `by`."""

    def make(name: str, *outcomes: str, by: str = "operator", first: int = 0) -> str:
        for seed, outcome in enumerate(outcomes, first):
            episode = replace(make_episode(steps=4, seed=seed, outcome=outcome), outcome_source=by)
            episode.save(tmp_path / name / f"{seed}.safetensors")
        return str(tmp_path / name)

    return make


@pytest.mark.parametrize(
    ("outcomes", "by", "sentence"),
    [
        (["success"] * 3, "operator", "of the 3 episodes only successes are known"),
        (["failure", "near_success"], "world", "of the 2 episodes only failures are known"),
        (["success", "failure"], "reward_model", "of the 2 episodes no outcomes are known"),
        (["success", "failure"], "vlm", "of the 2 episodes no outcomes are known"),
    ],
)
def test_data_of_one_outcome_is_refused(
    save: Callable[..., str], tmp_path: Path, outcomes: list[str], by: str, sentence: str
) -> None:
    from wvl_ros.sans.episodes import list_episodes

    entries = list_episodes(save("data", *outcomes, by=by))
    with pytest.raises(ConfigError, match=f"^A judge learns from successes and failures, but {sentence}; add "):
        JudgeTrainer(None, entries, JudgeTraining(), tmp_path / "out")  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"batch": 1}, "batch must be at least 2"),
        ({"lora": -1}, "lora must be 0 or more"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
    ],
)
def test_bad_settings_are_one_sentence(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        JudgeTraining(**settings)


def test_what_the_command_refuses(save: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = save("data", "success", "failure")
    held = save("held", "failure", "success", first=1)  # the first is in the data, too
    unknown = save("unknown", "", "", first=50)
    command = ["train", "judge", "--data", data, "--from", str(tmp_path / "model"), "--out"]
    for more, sentence in (
        ([str(tmp_path / "model")], "--out must be another folder than --from"),
        ([str(tmp_path / "out"), "--validation", held], "1 of the --validation episodes are in --data as well"),
        ([str(tmp_path / "out"), "--validation", unknown], "None of the --validation episodes has a known outcome"),
        ([str(tmp_path / "out")], "There is no folder"),
        ([str(tmp_path / "out"), "--batch", "0"], "batch must be at least 2"),
    ):
        assert main([*command, *more]) == 2
        told = capsys.readouterr().err
        assert sentence in told
        assert "Traceback" not in told
    assert not (tmp_path / "out").exists()


def test_the_rate_is_that_of_adapter_or_weights() -> None:
    assert JudgeTraining(lora=16).descent.learning_rate == 2e-4
    assert JudgeTraining(lora=0).descent.learning_rate == 1e-5
    own = JudgeTraining(steps=50, learning_rate=3e-4, weight_decay=0.1).descent
    assert (own.learning_rate, own.warmup, own.weight_decay) == (3e-4, 5, 0.1)
