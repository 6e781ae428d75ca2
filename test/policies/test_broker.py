"""The chunk broker re-plans in time and converts a chunk once, from the commanded pose."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wvl_ros.policies.broker import ChunkBroker
from wvl_ros.policies.interface import Chunk
from wvl_ros.worlds import droid


class Upwards:
    """A policy that always rises by 3 cm a step, and counts how often it is asked."""

    name, action_space, chunk_size, execute_steps = "upwards", "cartesian_velocity", 9, 6

    def __init__(self) -> None:
        self.asked = 0

    def reset(self, seed: int | None = None) -> None:
        self.asked = 0

    def act(self, observations: Sequence[dict[str, np.ndarray]], instructions: Sequence[str]) -> Chunk:
        self.asked += 1
        actions = np.zeros((len(observations), 9, 7))
        actions[:, :, 2] = 0.4
        return Chunk(actions)


def observe() -> dict[str, np.ndarray]:
    joints = droid.RESET_JOINTS
    return {"joint_position": joints, "cartesian_position": droid.forward_kinematics(joints) - [0, 0, 0.02, 0, 0, 0]}


def test_it_asks_again_after_execute_steps_and_builds_on_the_commanded_pose() -> None:
    policy = Upwards()
    broker = ChunkBroker(policy)
    broker.reset(0)
    commanded = np.append(droid.forward_kinematics(droid.RESET_JOINTS), 0.0)
    start = commanded[2]
    for step in range(1, 13):
        commanded = broker.action(observe(), "rise", commanded)
        assert commanded[2] == np.float64(commanded[2])
        np.testing.assert_allclose(commanded[2], start + 0.03 * step, atol=1e-9)
        assert policy.asked == 1 + (step - 1) // 6


def test_a_new_episode_drops_the_old_chunk() -> None:
    policy = Upwards()
    broker = ChunkBroker(policy)
    pose = np.append(droid.forward_kinematics(droid.RESET_JOINTS), 0.0)
    broker.action(observe(), "rise", pose)
    broker.reset(1)
    lower = pose - [0, 0, 0.1, 0, 0, 0, 0]
    np.testing.assert_allclose(broker.action(observe(), "rise", lower)[2], lower[2] + 0.03, atol=1e-9)


def test_it_speaks_the_world_s_action_space() -> None:
    broker = ChunkBroker(Upwards(), "joint_position")
    pose = np.append(droid.forward_kinematics(droid.RESET_JOINTS), 0.0)
    action = broker.action(observe(), "rise", pose)
    assert action.shape == (8,)
    np.testing.assert_allclose(droid.forward_kinematics(action[:7])[2], pose[2] + 0.03, atol=2e-3)
