"""`wvl collect`: every outcome, resumable, reproducible."""

import argparse
from pathlib import Path

import numpy as np
import pytest

from wvl_ros.commands import collect
from wvl_ros.errors import ConfigError, UnknownNameError
from wvl_ros.sans.episode import Episode


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    collect.add_arguments(parser)
    return parser.parse_args(words)


def test_collects_what_is_missing_and_the_same_again(tmp_path: Path) -> None:
    words = ("--task", "pick_place", "--episodes", "2", "--size", "32", "--out")
    first = collect.run(arguments(*words, str(tmp_path / "a")))
    assert (first["collected"], first["kept"]) == (2, 0)
    again = collect.run(arguments(*words, str(tmp_path / "a")))
    assert (again["collected"], again["kept"]) == (0, 2)
    collect.run(arguments(*words, str(tmp_path / "b")))
    for path in sorted((tmp_path / "a").iterdir()):
        one, other = Episode.load(path), Episode.load(tmp_path / "b" / path.name)
        assert np.array_equal(one.action, other.action)
        assert np.array_equal(one.images["wrist_image_left"], other.images["wrist_image_left"])
        assert one.outcome in ("success", "near_success", "failure")
        assert (one.outcome == "success") == bool(one.reward.any())
        assert (len(one.images["wrist_image_left"]), len(one)) == (21, 61)


def test_bad_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="no task called 'dance'"):
        collect.run(arguments("--task", "dance", "--out", str(tmp_path)))
    with pytest.raises(ConfigError, match="at least 1"):
        collect.run(arguments("--episodes", "0", "--out", str(tmp_path)))
