"""Outcomes as a model tells them against the truth: accuracy with its interval, false successes, misses, thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wvl_ros.evaluation import metrics
from wvl_ros.evaluation.wilson import wilson_interval

KINDS = ("success", "near_success", "failure")  # true outcomes that count
_RUNS = (2, 3)  # lengths of a run of frames that may make a success
_FEWER = 0.05  # share of the episodes


def outcome_measures(
    chances: Sequence[NDArray[np.float64]],
    outcomes: Sequence[str],
    threshold: float,
    frames: int,
    blind: NDArray[np.float64] | None = None,
) -> dict[str, Any]:
    """The outcome by the reward head against the truth, beside the blind baseline's guess."""
    kinds = np.array(outcomes)
    told = np.isin(kinds, KINDS)
    truth = kinds == "success"
    peaks = np.array([best_run(chance, frames) for chance in chances])
    result = judged(peaks > threshold, peaks, truth, kinds, told) | {"threshold": threshold, "frames": frames}
    if blind is not None:
        result["blind"] = judged(blind > 0.5, blind, truth, kinds, told)
    return result


def best_run(chance: NDArray[np.float64], frames: int) -> float:
    """The highest probability that holds for so many frames in a row; 0 when the rollout is shorter."""
    if len(chance) < frames:
        return 0.0
    return float(np.lib.stride_tricks.sliding_window_view(chance, frames).min(1).max())


def choose_threshold(chances: Sequence[NDArray[np.float64]], outcomes: Sequence[str]) -> tuple[float, int]:
    """Threshold and run of frames that call the fewest failures successes, among those whose balanced accuracy lies
    within one standard error of the best and that tell at most `_FEWER` fewer successes than there are.

    A policy that practises finds what is called a success and is none; in rollouts of its own a model tells more of
    them than in those by recorded actions. Neighbouring thresholds count half as much each: of few episodes, one is
    best by chance. One frame alone is never enough: flickers are found too (in one run a second judge turned down 57 %
    of such successes, 12 % of those that lasted three frames).
    """
    truth = np.array([outcome == "success" for outcome in outcomes])
    grid = np.linspace(0.05, 0.95, 19)
    if truth.all() or not truth.any():
        return 0.5, _RUNS[0]
    scores, missing, false = (np.empty((len(_RUNS), len(grid))) for _ in range(3))
    for row, frames in enumerate(_RUNS):
        peaks = np.array([best_run(chance, frames) for chance in chances])
        said = peaks[:, None] > grid
        each = (said[truth].mean(0) + 1 - said[~truth].mean(0)) / 2
        scores[row] = np.convolve(np.pad(each, 1, "edge"), (0.25, 0.5, 0.25), "valid")
        missing[row] = truth.mean() - said.mean(0)
        false[row] = said[~truth].mean(0)
    best = scores.max()
    error = np.sqrt(best * (1 - best) * (1 / truth.sum() + 1 / (~truth).sum())) / 2
    near = scores >= best - error - 1e-9
    near &= missing <= max(_FEWER, float(missing[near].min())) + 1e-9
    near &= np.isclose(false, false[near].min())
    near &= np.isclose(scores, scores[near].max())
    row = int(near.any(1).argmax())
    equal = grid[near[row]]
    return round(float(equal[len(equal) // 2]), 3), _RUNS[row]


def judged(
    said: NDArray[np.bool_],
    scores: NDArray[np.float64],
    truth: NDArray[np.bool_],
    kinds: NDArray[Any],
    told: NDArray[np.bool_],
) -> dict[str, Any]:
    """How often `said` (N,) is the truth, of the episodes with `told`; `scores` rank them, `kinds` are outcomes."""
    right, n = int((said == truth)[told].sum()), int(told.sum())
    interval = wilson_interval(right, n)

    def share(of: str, value: bool) -> float | None:
        rows = kinds == of
        return mean((said[rows] == value).astype(float))

    return {
        "episodes": n,
        "accuracy": right / n if n else None,
        "interval_95": [round(x, 4) for x in interval],
        "auc": metrics.area_under_curve(scores[told], truth[told]),
        "false_success_near": share("near_success", True),
        "false_success_near_interval_95": [
            round(x, 4)
            for x in wilson_interval(int(said[kinds == "near_success"].sum()), int((kinds == "near_success").sum()))
        ],
        "false_success_failure": share("failure", True),
        "missed_success": share("success", False),
        "base_rate": mean(truth[told].astype(float)),
        "matrix": {
            kind: {"said_success": int(said[kinds == kind].sum()), "said_not": int((~said[kinds == kind]).sum())}
            for kind in KINDS
        },
    }


def sentence(outcome: dict[str, Any]) -> str:
    """One of the outcomes of `evaluate` in words."""
    low, high = outcome["interval_95"]
    near, far = text(outcome["false_success_near"], 3), text(outcome["false_success_failure"], 3)
    accuracy, curve = text(outcome["accuracy"], 3), text(outcome["auc"], 3)
    return (
        f"accuracy {accuracy} [{low:.3f}, {high:.3f}] of {outcome['episodes']}, AUC {curve}; "
        f"false success: near {near}, far {far}; missed {text(outcome['missed_success'], 3)}"
    )


def text(value: float | None, digits: int = 1) -> str:
    """A figure, or '-' for none."""
    return "-" if value is None else f"{value:.{digits}f}"


def mean(values: NDArray[np.float64]) -> float | None:
    """Rounded; None without values."""
    return round(float(values.mean()), 4) if len(values) else None
