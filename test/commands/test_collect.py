"""`wvl collect` with a policy that acts in imagination: what it did there is done in the tabletop, and compared."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wvl_ros.commands import collect
from wvl_ros.errors import ConfigError
from wvl_ros.sans.episode import Episode


def run(*words: object) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    collect.add_arguments(parser)
    return collect.run(parser.parse_args([str(word) for word in words]))


def test_what_was_imagined_is_done_in_the_tabletop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--policy", "small", "--imagined-in", "small", "--task", "pick_place", "--episodes", 4, "--seed", 940_000)
    result = run(*words, "--out", tmp_path / "a", "--size", 64)
    assert result["collected"] == 4
    episodes = [Episode.load(path) for path in sorted((tmp_path / "a").glob("*.safetensors"))]
    assert [episode.extra["seed"] for episode in episodes] == [940_000, 940_001, 940_002, 940_003]
    told = np.array([episode.extra["imagined_success"] for episode in episodes])
    true = np.array([episode.outcome == "success" for episode in episodes])
    found = result["imagined"]
    assert found["imagined_success"]["share"] == told.mean() > 0  # the shipped policy nearly always succeeds
    assert found["true_success"]["share"] == true.mean() > 0
    assert found["true_of_imagined_successes"]["share"] == pytest.approx(true[told].mean(), abs=1e-4)
    assert all(len(episode.action) == 60 and episode.world_model == "world_model_small" for episode in episodes)
    collect.show(result)
    assert "true of imagined successes: " in capsys.readouterr().out

    again = run(*words, "--out", tmp_path / "a", "--size", 64)
    assert again["kept"] == 4
    assert "imagined" not in again  # nothing was imagined, so there is nothing to tell
    run(*words, "--out", tmp_path / "c", "--size", 64, "--denoising-steps", 2)
    finer = Episode.load(next((tmp_path / "c").glob("*_0940000.safetensors")))
    assert not np.allclose(finer.action, episodes[0].action, atol=1e-4)  # it saw other pictures
    played = run(*words[:2], *words[4:], "--out", tmp_path / "b", "--size", 64)
    assert "imagined" not in played
    seen = Episode.load(next((tmp_path / "b").glob("*_0940000.safetensors")))
    first, alike = episodes[0], np.array_equal
    assert alike(seen.images["wrist_image_left"][0], first.images["wrist_image_left"][0])  # the same scene
    assert np.allclose(seen.action[:6], first.action[:6], atol=2e-3)  # of which both saw the first observation
    assert not np.allclose(seen.action, first.action, atol=2e-3)


def test_somebody_must_act_in_imagination(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs a policy"):
        run("--imagined-in", "small", "--out", tmp_path)
    with pytest.raises(ConfigError, match="belongs to --imagined-in"):
        run("--policy", "small", "--denoising-steps", 2, "--out", tmp_path)
