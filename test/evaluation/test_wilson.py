"""Wilson's interval against published values and its own logic."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wvl_ros.evaluation.wilson import wilson_interval


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (29, 29, 0.8830, 1.0)],
)
def test_it_gives_the_values_of_newcombe_1998(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=1e-4)


@given(st.integers(0, 500), st.integers(0, 500))
def test_it_holds_the_rate_and_narrows_with_trials(successes: int, failures: int) -> None:
    trials = successes + failures
    low, high = wilson_interval(successes, trials)
    assert 0.0 <= low <= high <= 1.0
    if trials:
        assert low - 1e-9 <= successes / trials <= high + 1e-9
        more_low, more_high = wilson_interval(4 * successes, 4 * trials)
        assert more_high - more_low < high - low


def test_impossible_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="impossible"):
        wilson_interval(3, 2)
