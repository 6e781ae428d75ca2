"""Which checkpoint is kept, and when a run ends by itself."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from wvl_ros.training.validation import Verdict, best, exhausted


def _verdicts(*figures: tuple[float, float]) -> list[Verdict]:
    return [Verdict(i, accuracy, psnr, 100) for i, (accuracy, psnr) in enumerate(figures)]


def test_the_outcome_decides_and_psnr_breaks_ties_within_the_error() -> None:
    assert best(_verdicts((0.7, 30.0), (0.9, 25.0))) == 1
    # 0.91 and 0.90 of 100 are the same; the sharper one is kept.
    assert best(_verdicts((0.91, 25.0), (0.90, 26.0))) == 1
    assert best(_verdicts((0.91, 25.0), (0.80, 29.0))) == 0


def test_a_slow_decline_is_no_row_of_ties() -> None:
    declining = _verdicts(*((0.95 - 0.01 * i, 25.0 + i) for i in range(20)))
    assert declining[best(declining)].accuracy > 0.92


def test_patience_counts_validations_without_a_gain() -> None:
    verdicts = _verdicts((0.7, 24.0), (0.9, 25.0), (0.8, 24.0), (0.85, 24.5))
    assert not exhausted(verdicts, 0)
    assert not exhausted(verdicts, 3)
    assert exhausted(verdicts, 2)
    assert not exhausted([], 1)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(10, 40)), min_size=1, max_size=12))
def test_the_kept_one_is_never_clearly_worse_than_the_best(figures: list[tuple[float, float]]) -> None:
    verdicts = _verdicts(*figures)
    top = max(verdicts, key=lambda v: v.accuracy)
    assert verdicts[best(verdicts)].accuracy >= top.accuracy - top.error - 1e-12
    # It is one of those that were best when they came: only one is kept on disk.
    kept = best(verdicts)
    assert best(verdicts[: kept + 1]) == kept
