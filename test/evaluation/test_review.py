"""A person's verdicts beside the judge's."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from wvl_ros.errors import ConfigError
from wvl_ros.evaluation.review import agreement

_COLUMNS = ("picture", "task", "instruction", "truth", "judge_imagined", "judge_true", "me_imagined", "me_true")


def _table(path: Path, *rows: tuple[str, ...]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([_COLUMNS, *rows])
    return path


def test_agreement_counts_what_was_noted(tmp_path: Path) -> None:
    facts = ("push", "push it, slowly")
    table = _table(
        tmp_path / "review.csv",
        ("00.png", *facts, "success", "success", "success", "Success", ""),
        ("01.png", *facts, "near_success", "success", "not", "not", "not"),
        ("02.png", *facts, "failure", "not", "not", " not ", "success"),
        ("03.png", *facts, "success", "not", "success", "", ""),
    )
    result = agreement(table)
    assert (result["imagined"]["looked_at"], result["imagined"]["agree"]) == (3, pytest.approx(2 / 3, abs=1e-4))
    assert (result["true"]["looked_at"], result["true"]["agree"]) == (2, 0.5)
    assert result["visual_alignment_by_person"]["share"] == 1.0
    low, high = result["imagined"]["interval_95"]
    assert low < 2 / 3 < high


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        agreement(tmp_path / "nothing.csv")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ConfigError, match="no column 'picture'"):
        agreement(tmp_path / "other.csv")
    table = _table(tmp_path / "bad.csv", ("00.png", "push", "x", "success", "success", "success", "perhaps", ""))
    with pytest.raises(ConfigError, match="'perhaps' of 00"):
        agreement(table)
