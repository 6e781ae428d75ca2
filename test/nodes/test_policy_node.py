"""The policy node against a world played by the test."""

from __future__ import annotations

import time

import numpy as np
import pytest

rclpy = pytest.importorskip("rclpy")

from geometry_msgs.msg import PoseStamped  # noqa: E402
from sensor_msgs.msg import Image, JointState  # noqa: E402

from wvl_ros.msg import ActionChunk, EpisodeStatus, Reward  # noqa: E402
from wvl_ros.nodes import qos  # noqa: E402
from wvl_ros.nodes.images import image_message  # noqa: E402
from wvl_ros.nodes.messages import flange_pose, joint_state, to_time  # noqa: E402
from wvl_ros.sans.sources import load_source  # noqa: E402
from wvl_ros.worlds.droid import CAMERAS  # noqa: E402

PERIOD = 66_666_666


class FakeRobot:
    """Publishes observations of the shipped episode, as told, and collects chunks."""

    def __init__(self) -> None:
        self.node = rclpy.create_node("robot", namespace="/real")
        self.episode = load_source("droid")
        kinds = {f"{camera}/image_raw": Image for camera in CAMERAS}
        kinds |= {"joint_states": JointState, "cartesian_position": PoseStamped, "reward": Reward}
        self.publishers = {t: self.node.create_publisher(kind, t, qos.OBSERVATION) for t, kind in kinds.items()}
        self.status = self.node.create_publisher(EpisodeStatus, "episode_status", qos.STATUS)
        self.chunks: list[ActionChunk] = []
        self.node.create_subscription(ActionChunk, "action_chunk", self.chunks.append, qos.CHUNK)

    def until(self, condition, patience: float = 60.0) -> None:
        deadline = time.monotonic() + patience
        while not condition():
            assert time.monotonic() < deadline, self.chunks
            rclpy.spin_once(self.node, timeout_sec=0.05)

    def ready(self) -> None:
        self.until(lambda: self.node.count_publishers("/real/action_chunk") == 1)
        self.until(lambda: all(p.get_subscription_count() for p in self.publishers.values()))

    def observe(self, name: str, step: int, without: str = "", encoding: str = "rgb8") -> None:
        observation = self.episode.observation(step)
        stamp = to_time(10**18 + step * PERIOD)
        messages = {f"{camera}/image_raw": image_message(observation[camera], stamp, camera) for camera in CAMERAS}
        for image in messages.values():
            image.encoding = encoding
        messages |= {
            "joint_states": joint_state(observation, stamp),
            "cartesian_position": flange_pose(observation, stamp),
        }
        messages["reward"] = Reward(episode_id=name, step=step)
        messages["reward"].header.stamp = stamp
        for topic, message in messages.items():
            if topic != without:
                self.publishers[topic].publish(message)

    def ask(self, name: str, **fields: str) -> None:
        """Observes the first step once more: who is not matched yet loses it, on either way."""
        self.observe(name, 0, **fields)
        rclpy.spin_once(self.node, timeout_sec=0.5)

    def answers(self, name: str) -> dict[int, ActionChunk]:
        return {chunk.step: chunk for chunk in self.chunks if chunk.episode_id == name}

    def begin(self, name: str) -> None:
        self.status.publish(EpisodeStatus(episode_id=name, state=EpisodeStatus.RUNNING, instruction="go", seed=4))


@pytest.fixture
def robot(environment, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    rclpy.init()
    robot = FakeRobot()
    yield robot
    robot.node.destroy_node()
    rclpy.shutdown()


def test_it_answers_when_a_chunk_is_used_up_and_forgets_between_episodes(robot, start):
    policy = start("policy", policy="replay", source="droid")
    robot.ready()
    for name in ("a", "b"):
        robot.begin(name)
        while not robot.answers(name):
            robot.ask(name)
        for step in range(1, 17):
            robot.observe(name, step)
        robot.until(lambda name=name: 15 in robot.answers(name))
    assert {name: sorted(robot.answers(name)) for name in "ab"} == {"a": [0, 15], "b": [0, 15]}
    assert {chunk.chunk_id for chunk in robot.chunks if chunk.step == 15} == {1}
    np.testing.assert_array_equal(np.reshape(robot.chunks[-1].actions, (15, 7)), robot.episode.action[15:30])
    assert robot.answers("a")[15].header.stamp == to_time(10**18 + 15 * PERIOD)
    assert policy.end() == 0


def test_a_world_that_asks_again_about_a_step_gets_the_same_answer_again(robot, start):
    policy = start("policy", policy="replay", source="droid")
    robot.ready()
    robot.begin("a")
    while not robot.chunks:
        robot.ask("a")
    before = len(robot.chunks)
    robot.observe("a", 0)  # as a world does whose first answer was lost: it had not met the policy yet
    robot.until(lambda: len(robot.chunks) > before)
    assert robot.chunks[-1] == robot.chunks[0]
    assert policy.end() == 0


def test_a_topic_that_stops_is_named(robot, start):
    policy = start("policy", policy="hold")
    robot.ready()
    robot.begin("a")
    while not robot.chunks:
        robot.ask("a")
    for step in range(1, 12):
        robot.observe("a", step, without="wrist_image_left/image_raw")
    policy.wait_for("'/real/wrist_image_left/image_raw' has stopped while other topics go on")
    assert set(robot.answers("a")) == {0}


def test_a_picture_it_cannot_read_ends_it_with_a_sentence(robot, start):
    policy = start("policy", policy="hold")
    robot.ready()
    robot.begin("a")
    while policy.process.poll() is None:
        robot.ask("a", encoding="rgb565")
    assert policy.wait() == 2
    assert "encoding 'rgb565' cannot be read" in policy.output
