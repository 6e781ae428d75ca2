"""Judges by name: each is made, bad input is one sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wvl_ros.checkpoints import find
from wvl_ros.errors import ConfigError, UnknownNameError
from wvl_ros.rewards.interface import Judge
from wvl_ros.rewards.registry import JUDGES, make_judge
from wvl_ros.world_model.loading import read_config


def test_every_judge_has_the_one_interface(make_vlm: Callable[..., Path]) -> None:
    folder = str(make_vlm())
    model = read_config(find("world_model", "small"))
    for name in JUDGES:
        checkpoint = folder if name == "vlm" else ""
        own, given = make_judge(name, checkpoint), make_judge(name, checkpoint, 0.25)
        assert isinstance(own, Judge)
        assert own.name == name
        assert given.threshold == 0.25
        assert own.threshold == {"vlm": 0.8, "reward_head": model["success_threshold"]}.get(name, 0.5)
        assert own.probability([]).shape == (0,)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"name": "vlm"}, "needs a checkpoint"),
        ({"name": "operator", "checkpoint": "small"}, "takes no checkpoint"),
        ({"name": "ground_truth", "threshold": 1.0}, "threshold must lie in 0..1"),
        ({"name": "reward_head", "threshold": -0.1}, "threshold must lie in 0..1"),
        ({"name": "reward_head", "device": "cpu"}, "no setting 'device'"),
    ],
)
def test_bad_input_is_one_sentence(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        make_judge(**arguments)


def test_unknown_names_are_told() -> None:
    with pytest.raises(UnknownNameError, match="no judge called 'me'; choose one of: ground_truth, operator"):
        make_judge("me")
