"""Corrections in hindsight: one success of a start tells what its failures should have done."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from wvl_ros.errors import EpisodeError
from wvl_ros.policies.network import PolicyConfig
from wvl_ros.sans.episode import Episode
from wvl_ros.training.demonstrations import Disturbance, record_demonstration
from wvl_ros.training.hindsight import Demonstrator, Lessons, closings, corrected, find_grasp
from wvl_ros.training.samples import chunk_targets, decision_steps, key_places, states

CONFIG = PolicyConfig(vocabulary=("<pad>", "<unk>", "red"))
CALM = Disturbance(noise=0.0, pushes=0.0, displaced=0.0)


@pytest.fixture(scope="module")
def demonstrations() -> list[Episode]:
    return [record_demonstration("pick_place", 100_000 + i, Disturbance(pushes=0.0)) for i in range(6)]


@pytest.fixture(scope="module")
def demonstrator(demonstrations: list[Episode]) -> Demonstrator:
    lessons = Lessons(CONFIG.chunk_size)
    assert list(lessons.listen(demonstrations)) == demonstrations
    return lessons.learn(steps=1500)


@pytest.fixture(scope="module")
def success() -> Episode:
    return record_demonstration("pick_place", 100_050, CALM)


def _missed(success: Episode, aside: float) -> Episode:
    """As the success, but its hand passes `aside` m beside it."""
    poses = success.cartesian_position.copy()
    poses[:, 1] += aside
    return replace(success, cartesian_position=poses, outcome="failure")


def test_a_grasp_is_where_the_hand_closed_and_opened(success: Episode) -> None:
    grasp = find_grasp(success)
    assert grasp is not None
    (closing,) = closings(success)
    np.testing.assert_allclose(grasp.closed, success.cartesian_position[closing, :3], atol=0.01)
    np.testing.assert_allclose(grasp.opened, key_places(success)[0, 3:])


def test_a_push_is_no_grasp_and_a_thing_that_was_moved_tells_nothing_of_its_start(success: Episode) -> None:
    assert find_grasp(record_demonstration("push", 100_003, CALM)) is None
    (closing,) = closings(success)
    action, poses = success.action.copy(), success.cartesian_position.copy()
    action[closing - 7 : closing - 2, 6] = 1.0  # closed once before
    poses[closing - 8 : closing - 1, :3] = poses[closing, :3] + (0.0, 0.05, 0.0)
    assert find_grasp(replace(success, action=action, cartesian_position=poses)) is None


def test_a_demonstrator_goes_where_it_is_told(demonstrator: Demonstrator, demonstrations: list[Episode]) -> None:
    episode = demonstrations[0]
    steps = np.arange(0, closings(episode)[0] - 6)
    state, places = states(episode, steps), key_places(episode, steps)
    straight = demonstrator.tell(state, "pick_place", places)
    aside = demonstrator.tell(state, "pick_place", places + (0.0, 0.05, 0.0, 0.0, 0.0, 0.0))
    assert straight.shape == (len(steps), CONFIG.chunk_size, 7)
    assert (aside[:, :6, 1].mean(1) > straight[:, :6, 1].mean(1) + 0.05).mean() > 0.8
    np.testing.assert_array_equal(straight[:, 0, 6], 0.0)


def test_a_failure_is_corrected_towards_what_succeeded(demonstrator: Demonstrator, success: Episode) -> None:
    failure = _missed(success, 0.06)
    samples = corrected([[success, failure]], demonstrator, CONFIG)
    assert samples is not None
    (closing,) = closings(success)
    steps = decision_steps(success)
    mine, other = (samples.episode == i for i in (0, 1))
    assert other.sum() == (steps <= closing).sum()  # after its grasp of nothing nobody knows what to do
    assert mine.sum() == len(steps)
    late = samples.actions[mine][steps > closing].numpy()
    np.testing.assert_allclose(late, chunk_targets(success, CONFIG.chunk_size)[steps > closing], atol=1e-6)
    back = samples.actions[other, :6, 1].mean(1) - samples.actions[mine][steps <= closing][:, :6, 1].mean(1)
    assert float((back < -0.05).float().mean()) > 0.6
    grasp = find_grasp(success)
    assert grasp is not None
    np.testing.assert_allclose(samples.places[other, :3], np.tile(grasp.closed, (int(other.sum()), 1)), atol=1e-5)


def test_starts_that_nobody_has_solved_teach_nothing(demonstrator: Demonstrator, success: Episode) -> None:
    assert corrected([[_missed(success, 0.06)], []], demonstrator, CONFIG) is None
    stranger = replace(success, task="stack")  # no demonstration of it was heard
    assert corrected([[stranger]], demonstrator, CONFIG) is None


def test_without_demonstrations_it_is_refused() -> None:
    with pytest.raises(EpisodeError, match="no demonstrations"):
        Lessons(CONFIG.chunk_size).learn()
