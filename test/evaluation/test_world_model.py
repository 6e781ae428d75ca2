"""`wvl evaluate world-model` with the shipped model: the figures, the files it writes, what it refuses."""

from __future__ import annotations

import argparse
import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from wvl_ros.checkpoints import find
from wvl_ros.errors import CheckpointError, ConfigError
from wvl_ros.evaluation import world_model as evaluation
from wvl_ros.evaluation.visual_judge import VisualJudge, save_judge
from wvl_ros.sans.episode import Episode
from wvl_ros.world_model.loading import read_config


def evaluate(*words: object) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    evaluation.add_arguments(parser)
    return evaluation.run(parser.parse_args([str(word) for word in words]))


def test_the_report_of_a_few_episodes(
    tmp_path: Path, make_episode: Callable[..., Episode], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(find("world_model", "small"), folder)
    save_judge(folder, VisualJudge(list(read_config(folder)["vocabulary"]), members=1))
    for i, outcome in enumerate(("success", "near_success", "failure", "success")):
        make_episode(seed=i, outcome=outcome, steps=13 + 6 * (i % 2)).save(tmp_path / "data" / f"{i}.safetensors")
    words = (folder, "--data", tmp_path / "data", "--threads", 1)
    result = evaluate(*words, "--curves", tmp_path / "drift.png", "--review", tmp_path / "review")
    flat = [key for key, value in result.items() if not isinstance(value, (dict, list))]
    assert flat[:3] == ["psnr", "psnr_low", "psnr_high"]
    assert {"ssim", "visual_alignment", "reward_alignment", "false_success", "blind_alignment_low"} <= set(flat)
    assert result["lpips"] is None
    assert result["fvd"] is None
    drift = result["images"]["drift"]
    assert drift["episodes"] == [4, 4, 4, 4, 2, 2]
    assert drift["wrist_image_left"]["psnr"][0] == result["images"]["wrist_image_left"]["psnr_at_0.2s"]
    matrix = result["visual"]["imagined"]["matrix"]
    assert sum(matrix["success"].values()) == 2
    assert sum(row["count"] for row in result["calibration"]["frames"]["table"]) == 4 + 6 + 4 + 6
    json.dumps(result, allow_nan=False)
    evaluation.show(result)
    assert "LPIPS" in (text := capsys.readouterr().out)
    assert "not computed" in text

    assert Image.open(tmp_path / "drift.png").width > 600
    assert len(list((tmp_path / "review").glob("*.png"))) == 4
    table = tmp_path / "review" / "review.csv"
    rows = list(csv.DictReader(table.open(newline="")))
    assert [row["truth"] for row in rows] == ["success", "near_success", "failure", "success"]
    with table.open("w", newline="") as file:  # a person who always says what the judge says
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(row | {"me_imagined": row["judge_imagined"]} for row in rows)
    again = evaluate(*words, "--reviewed", table)
    assert (again["review"]["imagined"]["agree"], again["review"]["true"]["looked_at"]) == (1.0, 0)
    assert again["psnr"] == result["psnr"]
    with pytest.raises(ConfigError, match="exists already"):
        evaluate(*words, "--review", tmp_path / "review")


def test_what_it_refuses(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--episodes"):
        evaluate("--episodes", 0)
    with pytest.raises(ConfigError, match="no file"):
        evaluate("--fvd-weights", tmp_path / "i3d.pt")


def test_a_model_that_imagines_the_truth_has_perfect_figures(
    make_episode: Callable[..., Episode], tmp_path: Path
) -> None:
    from types import SimpleNamespace

    from wvl_ros.evaluation.images import image_measures
    from wvl_ros.evaluation.imagined import ImaginedEpisode
    from wvl_ros.training.frame_cache import open_cache

    for i in range(2):
        make_episode(seed=i, steps=13 + 6 * i).save(tmp_path / f"{i}.safetensors")
    cache = open_cache(tmp_path, size=64, patch=4, actions_per_frame=3, rig="tabletop")
    starts = [(int(s), int(n)) for s, n in zip(cache.frame_start, cache.frame_count, strict=True)]
    true = [ImaginedEpisode(cache.frames[s + 1 : s + n], np.zeros(n - 1), cache.kinematics[:0]) for s, n in starts]
    model: Any = SimpleNamespace(config={"patch": 4})
    result = image_measures(cache, np.arange(2), true, model)
    assert (result["psnr"], result["ssim"]) == (100.0, 1.0)
    assert result["intervals_95"]["psnr"] == (100.0, 100.0)
    assert result["wrist_image_left"]["psnr_at_4.0s"] is None


def test_a_large_model_is_told_where_it_is_measured(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "SVDWorldModel"}))
    (tmp_path / "diffusion_pytorch_model.safetensors").touch()
    with pytest.raises(CheckpointError, match="takes the small world model"):
        evaluate(tmp_path)
