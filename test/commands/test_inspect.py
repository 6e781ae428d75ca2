"""`wvl inspect` counts what is there and draws it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wvl_ros.cli import main
from wvl_ros.sans import overview
from wvl_ros.sans.dataset import Dataset, DatasetFormat
from wvl_ros.sans.episode import Episode
from wvl_ros.worlds.droid import CAMERAS


@pytest.fixture
def dataset(tmp_path: Path, make_episode: Callable[..., Episode]) -> Dataset:
    """Four episodes, one of them unlabelled."""
    dataset = Dataset.create(tmp_path / "sans", DatasetFormat(dict.fromkeys(CAMERAS, (64, 64))))
    for seed, outcome in enumerate(["success", "near_success", "", "success"]):
        episode = replace(make_episode(seed=seed, outcome=outcome), iteration=seed // 2, policy=f"p{seed // 2}")
        dataset.append(episode, report={"skew_max_ms": 3.0 + seed, "drops": seed})
    return dataset


def test_summary(dataset: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(dataset.root), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["tasks"] == {"pick_place": {"near_success": 1, "success": 2, "unlabelled": 1}}
    assert (result["episodes"], result["steps"], result["unlabelled"]) == (4, 52, 1)
    assert result["iterations"] == {"0": 2, "1": 2}
    assert result["policies"] == {"p0": 2, "p1": 2}
    assert result["conversion"] == {
        "episodes": 4,
        "worst_skew_ms": 6.0,
        "worst_episode": 3,
        "drops": 6,
        "episodes_with_drops": 3,
    }
    sheet = np.asarray(Image.open(result["contact_sheet"]))
    for outcome in ("success", "near_success", "unlabelled"):
        assert (sheet == overview.COLOURS[outcome]).all(-1).sum() > 1000
    assert not (sheet == overview.COLOURS["failure"]).all(-1).any()
    assert dataset.verify() == []


def test_people_read_a_table(dataset: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(dataset.root), "--no-sheet"]) == 0
    text = capsys.readouterr().out
    assert "4 episodes, 52 steps" in text
    assert "unlabelled: 1" in text
    assert not (dataset.root / "contact_sheet.png").exists()


def test_one_episode(dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "three.png"
    assert main(["inspect", str(dataset.root), "--episode", "3", "--out", str(out), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["index"], result["steps"], result["report"]["drops"]) == (3, 12, 3)
    assert Image.open(out).height == 3 * 64 + 44
    assert main(["inspect", str(dataset.root), "--episode", "9"]) == 2


def test_an_empty_dataset_and_an_episode_file(
    tmp_path: Path, make_episode: Callable[..., Episode], capsys: pytest.CaptureFixture[str]
) -> None:
    Dataset.create(tmp_path / "empty", DatasetFormat({"top": (32, 32)}))
    assert main(["inspect", str(tmp_path / "empty")]) == 0
    make_episode().save(tmp_path / "one.safetensors")
    assert main(["inspect", str(tmp_path / "one.safetensors")]) == 0
    assert (tmp_path / "one.png").is_file()
    assert main(["inspect", str(tmp_path / "one.safetensors"), "--episode", "0"]) == 2
    assert "no" in capsys.readouterr().err


def test_samples_are_even_over_outcomes(dataset: Dataset) -> None:
    assert [record.index for record in overview.sample(dataset.records, 3)] == [0, 1, 2]
    assert len(overview.sample(dataset.records, 10)) == 4
