"""Ground truth and the operator: they repeat what is known, and refuse what is not theirs to say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from wvl_ros.errors import EpisodeError
from wvl_ros.rewards.known import GroundTruth, Operator
from wvl_ros.sans.episode import Episode


def test_each_repeats_its_own_outcomes(make_episode: Callable[..., Episode]) -> None:
    outcomes = ["success", "near_success", "failure"]
    episodes = [replace(make_episode(outcome=outcome), outcome_source="world") for outcome in outcomes]
    assert GroundTruth().probability(episodes).tolist() == [1.0, 0.0, 0.0]
    by_people = [replace(episodes[0], outcome_source=who) for who in ("operator", "dataset")]
    assert Operator().probability(by_people).tolist() == [1.0, 1.0]
    imagined = replace(by_people[0], source="policy/imagined", outcome="failure")
    assert Operator().probability([imagined]).tolist() == [0.0]
    assert GroundTruth().probability([]).shape == (0,)


@pytest.mark.parametrize(
    ("outcome", "told_by", "source"),
    [
        ("success", "operator", "policy/tabletop"),
        ("success", "", "policy/tabletop"),
        ("", "world", "policy/tabletop"),
        ("aborted", "world", "policy/tabletop"),
        ("success", "world", "policy/imagined"),  # what an imagined world says of itself
    ],
)
def test_without_ground_truth_there_is_one_sentence(
    make_episode: Callable[..., Episode], outcome: str, told_by: str, source: str
) -> None:
    good = replace(make_episode(), outcome_source="world")
    episode = replace(make_episode(seed=7, outcome=outcome, source=source), outcome_source=told_by)
    with pytest.raises(EpisodeError, match=r"^Episode 'synthetic_7' has no ground truth: [^.]*; use another judge\.$"):
        GroundTruth().probability([good, episode])


@pytest.mark.parametrize(("outcome", "told_by"), [("success", "world"), ("", "operator"), ("success", "reward_model")])
def test_the_operator_is_to_label_first(make_episode: Callable[..., Episode], outcome: str, told_by: str) -> None:
    episode = replace(make_episode(seed=7, outcome=outcome), outcome_source=told_by)
    with pytest.raises(EpisodeError, match=r"^No operator has labelled episode 'synthetic_7'; .*`wvl label`\.$"):
        Operator().probability([episode])
