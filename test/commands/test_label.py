"""`wvl label`: by keys on a terminal, by arguments without one, and by the reward model."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from wvl_ros.cli import main
from wvl_ros.commands.label import ask
from wvl_ros.sans.dataset import Dataset
from wvl_ros.sans.episode import Episode
from wvl_ros.sans.export import export_bag
from wvl_ros.sans.labels import JudgeConfig, RewardModel, find_labelled
from wvl_ros.sans.sources import load_source
from wvl_ros.sans.store.format import DatasetFormat
from wvl_ros.sans.terminal import draw
from wvl_ros.worlds.droid import CAMERAS


@pytest.fixture
def dataset(tmp_path: Path, make_episode: Callable[..., Episode]) -> Dataset:
    dataset = Dataset.create(tmp_path / "sans", DatasetFormat(dict.fromkeys(CAMERAS, (64, 64))))
    for seed in range(4):
        dataset.append(make_episode(seed=seed, outcome="success" if seed == 3 else ""))
    return dataset


def outcomes(dataset: Dataset) -> list[tuple[str, str]]:
    dataset.refresh()
    return [(record.outcome, record.outcome_source) for record in dataset.records]


def test_keys_label_skip_and_undo(dataset: Dataset) -> None:
    success = dataset.read(3, images=False).reward.tolist()
    asked = find_labelled(dataset.root, everything=True)
    # s on 0; skip 1; f on 2 is undone to n; on 3 f is undone, then skipped, so that its rewards stay; x is no key.
    told = ask(asked, iter(["s", " ", "f", "u", "n", "x", "f", "u", " ", "q"]))
    assert told == {"0 (synthetic_0)": "success", "2 (synthetic_2)": "near_success"}
    said = outcomes(dataset)
    assert said == [("success", "operator"), ("", ""), ("near_success", "operator"), ("success", "")]
    assert dataset.read(3, images=False).reward.tolist() == success
    assert dataset.read(0, images=False).reward.tolist() == [0.0] * 11 + [1.0]
    assert [each.name for each in find_labelled(dataset.root)] == ["1 (synthetic_1)", "3 (synthetic_3)"]


def test_on_a_terminal_the_sheet_is_drawn_and_a_key_labels(dataset: Dataset) -> None:
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "wvl_ros.cli", "label", str(dataset.root), "--episode", "1"]
    process = subprocess.Popen(command, stdin=follower, stderr=follower, stdout=subprocess.PIPE, close_fds=True)
    os.close(follower)
    seen = b""
    while b"[q]uit" not in seen:
        seen += os.read(leader, 65536)
    assert b"38;2;" in seen  # colours
    assert b"put the red cube" in seen
    path = Path(next(line for line in seen.decode().splitlines() if line.endswith(".png")))
    assert Image.open(path).width == 8 * 64
    os.write(leader, b"fq")
    assert process.stdout is not None
    assert b"1 of 1 episodes labelled: 1 failure." in process.stdout.read()
    process.stdout.close()
    assert process.wait() == 0
    os.close(leader)
    assert outcomes(dataset)[1] == ("failure", "operator")


def test_without_a_terminal_the_outcome_is_an_argument(dataset: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["label", str(dataset.root)]) == 2
    assert "give --outcome" in capsys.readouterr().err
    assert main(["label", str(dataset.root), "--outcome", "success", "--episode", "2"]) == 0
    assert outcomes(dataset) == [("", ""), ("", ""), ("success", "operator"), ("success", "")]
    assert main(["label", str(dataset.root / "nothing"), "--outcome", "failure"]) == 2
    assert "nothing to label" in capsys.readouterr().err


def test_a_bag_is_labelled_in_its_metadata(tmp_path: Path, make_episode: Callable[..., Episode]) -> None:
    report = export_bag(make_episode(outcome="failure"), tmp_path)
    assert main(["label", str(report.folder), "--outcome", "near_success"]) == 0
    episode = load_source(str(report.folder))
    assert episode is not None
    assert (episode.outcome, episode.outcome_source) == ("near_success", "operator")


def test_the_reward_model_judges_by_its_own_threshold(dataset: Dataset, make_episode: Callable[..., Episode]) -> None:
    assert main(["label", str(dataset.root), "--by", "reward_model"]) == 0
    assert {source for _, source in outcomes(dataset)} == {"reward_model"}
    model, episode = RewardModel(), make_episode(steps=31)
    verdict = model.judge(episode)
    assert len(verdict.probabilities) == 10
    assert model.judge(episode).peak == verdict.peak == verdict.probabilities.max()
    model.model.register_to_config(success_threshold=verdict.peak - 1e-9, success_frames=1)
    assert model.judge(episode).outcome == "success"
    model.model.register_to_config(success_frames=11)
    model.config = JudgeConfig(near_threshold=verdict.peak / 2)
    assert model.judge(episode).outcome == "near_success"
    model.config = JudgeConfig(near_threshold=min(0.999, verdict.peak * 1.01))
    assert model.judge(episode).outcome == "failure"


def test_a_picture_fits_into_the_terminal() -> None:
    text = draw(Image.new("RGB", (640, 100), (255, 0, 7)), 64, 40)
    lines = text.split("\n")
    assert len(lines) == 5
    assert all(line.count("\N{UPPER HALF BLOCK}") == 64 for line in lines)
    assert "\x1b[38;2;255;0;7;48;2;255;0;7m" in text
