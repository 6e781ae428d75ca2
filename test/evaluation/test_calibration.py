"""Reliability of probabilities against cases worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from wvl_ros.evaluation.calibration import calibration


def test_who_says_what_comes_is_calibrated_and_who_is_too_sure_is_not() -> None:
    truth = np.arange(100) % 4 == 0
    fair = calibration(np.full(100, 0.25), truth)
    assert fair["ece"] == 0.0
    assert fair["brier"] == fair["brier_of_base_rate"] == pytest.approx(0.1875)
    sure = calibration(np.full(100, 0.95), truth)
    assert sure["ece"] == pytest.approx(0.70)
    assert sure["table"] == [{"low": 0.9, "high": 1.0, "count": 100, "said": 0.95, "came": 0.25}]


def test_certainties_and_nothing_at_all() -> None:
    right = calibration(np.array([0.0, 1.0, 1.0]), np.array([False, True, True]))
    assert (right["brier"], right["ece"]) == (0.0, 0.0)
    assert [row["count"] for row in right["table"]] == [1, 2]
    assert calibration(np.empty(0), np.empty(0, bool))["brier"] is None
