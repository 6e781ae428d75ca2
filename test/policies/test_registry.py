"""The simple policies, and policies by name."""

from __future__ import annotations

import numpy as np
import pytest

from wvl_ros.errors import EpisodeError, ObservationError, UnknownNameError
from wvl_ros.policies.interface import Policy
from wvl_ros.policies.registry import make_policy
from wvl_ros.sans.sources import load_source
from wvl_ros.worlds.droid import check_chunk

OBSERVATION = {"gripper_position": np.array([0.25])}


@pytest.mark.parametrize("name", ["random", "hold", "replay"])
def test_chunks_fit_their_action_space_and_repeat_with_the_seed(name):
    policy = make_policy(name, source="droid")
    assert isinstance(policy, Policy)
    runs = []
    for _ in range(2):
        policy.reset(3)
        runs.append([policy.act([OBSERVATION] * 2, ["go"] * 2).actions for _ in range(3)])
    np.testing.assert_array_equal(runs[0], runs[1])
    for chunk in runs[0]:
        assert chunk.shape == (2, policy.chunk_size, 7)
        for row in chunk:
            np.testing.assert_array_equal(check_chunk(row, policy.action_space), row)


def test_replay_gives_the_recorded_actions_in_order_and_then_stays():
    episode = load_source("droid")
    policy = make_policy("replay", source="droid", start=140)
    actions = np.concatenate([policy.act([{}], [""]).actions[0] for _ in range(3)])
    np.testing.assert_array_equal(actions[:26], episode.action[140:])
    np.testing.assert_array_equal(actions[26:], np.repeat(episode.action[-1:], 19, axis=0))


def test_random_is_smooth_and_each_of_a_batch_moves_on_its_own():
    policy = make_policy("random")
    policy.reset(1)
    chunk = policy.act([OBSERVATION] * 2, ["go"] * 2).actions
    assert np.abs(np.diff(chunk[0, :, :6], axis=0)).max() < 4 * 0.15 * np.sqrt(1 - 0.85**2)
    assert not np.allclose(chunk[0], chunk[1])


def test_hold_keeps_the_gripper():
    np.testing.assert_array_equal(make_policy("hold").act([OBSERVATION], ["go"]).actions[0, 4], [0] * 6 + [0.25])


def test_what_cannot_be_made_is_refused_with_a_sentence():
    with pytest.raises(
        UnknownNameError, match="There is no policy called 'genius'; choose one of: hold, openpi, openvla_oft"
    ):
        make_policy("genius")
    with pytest.raises(EpisodeError, match="source:=droid"):
        make_policy("replay")
    with pytest.raises(EpisodeError, match="leaves none to replay"):
        make_policy("replay", source="droid", start=166)
    with pytest.raises(ObservationError, match="gripper_position"):
        make_policy("hold").act([{}], ["go"])
