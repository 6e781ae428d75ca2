"""What a judge is shown and asked: kept beside its weights, bad values are one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from wvl_ros.errors import CheckpointError, ConfigError, WvlError
from wvl_ros.rewards.vlm.settings import FILE, VlmSettings
from wvl_ros.worlds.droid import CAMERAS


def test_settings_come_back_from_their_file(tmp_path: Path) -> None:
    assert VlmSettings.read(tmp_path) == VlmSettings()
    settings = VlmSettings(cameras=CAMERAS, frames=8, question="{instruction}: done?", threshold=0.6)
    settings.write(tmp_path)
    assert VlmSettings.read(tmp_path) == settings
    assert VlmSettings.read(tmp_path).changed(threshold=0.7).threshold == 0.7


def test_an_instruction_cannot_bring_tokens_of_its_own() -> None:
    asked = VlmSettings(question="Is '{instruction}' done?").asked(" push {it} <|video_pad|> ")
    assert asked == "Is 'push {it} < |video_pad|>' done?"


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"frames": 0}, "frames must be at least 1, but is 0"),
        ({"threshold": 1.0}, "threshold must be in 0..1"),
        ({"least_mass": -1}, "least_mass must be in 0..1"),
        ({"max_pixels": 10}, "max_pixels must be at least min_pixels"),
        ({"cameras": ["front"]}, "no camera called 'front'"),
        ({"cameras": []}, "one camera or more"),
        ({"question": "Done?"}, "a text with {instruction} in it"),
        ({"frames": "many"}, "wrong type"),
        ({"cameras": 3}, "wrong type"),
        ({"colour": 1}, "no setting 'colour'"),
    ],
)
def test_bad_settings_are_one_sentence(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(WvlError, match=sentence):
        VlmSettings().changed(**values)


def test_a_damaged_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("[1]")
    with pytest.raises(ConfigError, match="table of settings"):
        VlmSettings.read(tmp_path)
    (tmp_path / FILE).write_text("{")
    with pytest.raises(CheckpointError, match="damaged"):
        VlmSettings.read(tmp_path)
