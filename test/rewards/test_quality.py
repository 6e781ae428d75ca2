"""Precision and recall of a judge, and who is refused: always yes, always no, measured against nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from wvl_ros.errors import ConfigError, EpisodeError
from wvl_ros.evaluation.wilson import wilson_interval
from wvl_ros.rewards.quality import ENOUGH, Quality, Rate, measure, require_useful
from wvl_ros.sans.episode import Episode


class Says:
    """A judge that says the number in `extra`."""

    name = "says"

    def __init__(self, threshold: float = 0.5) -> None:
        self.threshold = threshold
        self.largest = 0

    def probability(self, episodes: Sequence[Episode]) -> NDArray[np.float64]:
        """See `Judge`."""
        self.largest = max(self.largest, len(episodes))
        return np.array([float(str(episode.extra["says"])) for episode in episodes])


@pytest.fixture
def case(make_episode: Callable[..., Episode]) -> Callable[..., Episode]:
    """An episode of an outcome of which `Says` says a number."""
    base = make_episode(steps=4)

    def make(outcome: str, says: float, told_by: str = "operator", source: str = "policy/tabletop") -> Episode:
        return replace(base, outcome=outcome, outcome_source=told_by, source=source, extra={"says": says})

    return make


def test_precision_recall_and_false_successes(case: Callable[..., Episode]) -> None:
    cases = [("success", 0.9)] * 15 + [("success", 0.2)] * 7 + [("failure", 0.9)] * 6 + [("near_success", 0.51)] * 2
    cases += [("failure", 0.1)] * 9 + [("near_success", 0.5)]  # at the threshold is not above it
    quality = measure(Says(), [case(outcome, says) for outcome, says in cases])
    assert (quality.tp, quality.fn, quality.fp, quality.tn) == (15, 7, 8, 10)  # VLAW's direct answer
    for rate, hits, trials in (
        (quality.precision, 15, 23),
        (quality.recall, 15, 22),
        (quality.false_success, 8, 18),
    ):
        assert rate.value == pytest.approx(hits / trials)
        assert (rate.low, rate.high) == wilson_interval(hits, trials)
    assert "precision 65% (45% to 81%, 15 of 23)" in quality.sentence
    assert "recall 68%" in quality.sentence
    assert Quality.from_dict(quality.to_dict()) == quality
    assert quality.to_dict()["matrix"] == {"tp": 15, "fp": 8, "fn": 7, "tn": 10}
    require_useful(quality)


def test_episodes_are_read_a_few_at_a_time(case: Callable[..., Episode]) -> None:
    alive = most = 0

    class Counted(Episode):
        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def read() -> Iterator[Episode]:
        nonlocal alive, most
        for i in range(100):
            alive += 1
            most = max(most, alive)
            yield Counted(**vars(case("success" if i % 2 else "failure", 0.9)))

    judge = Says()
    assert measure(judge, read()).episodes == 100
    assert most < 40
    assert judge.largest > 1


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 30), st.integers(0, 30))
def test_only_a_judge_that_tells_both_outcomes_apart_is_useful(tp: int, fp: int, fn: int, tn: int) -> None:
    quality = Quality("x", 0.8, tp, fp, fn, tn)
    always_yes = tn == 0 and fp >= ENOUGH
    always_no = tp == 0 and fn >= ENOUGH
    if always_yes or always_no or tp + fn == 0 or fp + tn == 0:
        with pytest.raises(ConfigError, match="judge 'x'"):
            require_useful(quality)
    else:
        require_useful(quality)


def test_always_yes_always_no_and_one_outcome_are_one_sentence_each(case: Callable[..., Episode]) -> None:
    both = [("success", 1.0)] * 6 + [("failure", 1.0)] * 6
    yes = measure(Says(), [case(outcome, says) for outcome, says in both])
    with pytest.raises(ConfigError, match=r"^The judge 'says' says yes to all 6 failures .*cannot tell success"):
        require_useful(yes)
    no = measure(Says(), [case(outcome, 0.0) for outcome, _ in both])
    with pytest.raises(ConfigError, match=r"^The judge 'says' says no to all 6 successes"):
        require_useful(no)
    alone = measure(Says(), [case("success", 1.0)] * 9)
    with pytest.raises(ConfigError, match="no failure is among the 9 labelled episodes"):
        require_useful(alone)
    assert alone.false_success.value is None
    assert "failures taken for a success unknown" in alone.sentence
    assert alone.to_dict()["false_success"] == {"value": None, "interval_95": [0.0, 1.0], "hits": 0, "trials": 0}
    with pytest.raises(ConfigError, match="cannot be measured without labelled episodes"):
        measure(Says(), [])


@pytest.mark.parametrize(
    ("outcome", "told_by", "source"),
    [
        ("", "", "policy/tabletop"),
        ("aborted", "operator", "policy/tabletop"),
        ("success", "reward_model", "policy/tabletop"),
        ("success", "reward_head", "policy/tabletop"),
        ("success", "vlm", "policy/imagined"),
        ("success", "world", "policy/imagined"),
    ],
)
def test_a_judge_is_not_measured_against_an_opinion(
    case: Callable[..., Episode], outcome: str, told_by: str, source: str
) -> None:
    known = [case("failure", 0.1), case("success", 0.9, "operator", "policy/imagined"), case("success", 0.9, "")]
    assert measure(Says(), known).episodes == 3
    with pytest.raises(EpisodeError, match=r"^A judge is measured against what is known, but .*`wvl label`\.$"):
        measure(Says(), [*known, case(outcome, 0.9, told_by, source)])


def test_a_rate_in_words() -> None:
    assert str(Rate(0, 0)) == "unknown"
    assert str(Rate(8, 8)) == "100% (68% to 100%, 8 of 8)"
