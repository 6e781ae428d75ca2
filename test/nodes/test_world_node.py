"""The world node as another process sees it: its topics, and what it does with wrong or late input."""

from __future__ import annotations

import array
import time

import numpy as np
import pytest

rclpy = pytest.importorskip("rclpy")

from rclpy.action import ActionClient  # noqa: E402
from sensor_msgs.msg import CameraInfo, Image, JointState  # noqa: E402

from wvl_ros.action import RunEpisode  # noqa: E402
from wvl_ros.msg import ActionChunk, EpisodeStatus, Reward  # noqa: E402
from wvl_ros.nodes import qos  # noqa: E402
from wvl_ros.nodes.images import image_array  # noqa: E402
from wvl_ros.nodes.messages import to_nanoseconds  # noqa: E402
from wvl_ros.sans.bags.topics import ABORTED, FINISHED  # noqa: E402
from wvl_ros.sans.sources import load_source  # noqa: E402
from wvl_ros.srv import ResetWorld  # noqa: E402
from wvl_ros.worlds.droid import CAMERAS  # noqa: E402


class Client:
    """A policy and a listener in the test's own process."""

    def __init__(self, namespace: str) -> None:
        self.node = rclpy.create_node("tester", namespace=namespace)
        self.seen: dict[str, list] = {}
        topics = {f"{camera}/image_raw": Image for camera in CAMERAS} | {
            f"{camera}/camera_info": CameraInfo for camera in CAMERAS
        }
        for topic, kind in (topics | {"joint_states": JointState, "reward": Reward}).items():
            self.listen(topic, kind, qos.OBSERVATION)
        self.chunks = self.node.create_publisher(ActionChunk, "action_chunk", qos.CHUNK)
        self.action = ActionClient(self.node, RunEpisode, "run_episode")
        self.resetting = self.node.create_client(ResetWorld, "reset")
        self.listen("episode_status", EpisodeStatus, qos.STATUS)  # last: see `RunnerNode`'s `Follower`

    def listen(self, topic: str, kind: type, profile) -> None:
        self.seen[topic] = []
        self.node.create_subscription(kind, topic, self.seen[topic].append, profile)

    def until(self, condition, patience: float = 60.0):
        deadline = time.monotonic() + patience
        while not (result := condition()):
            assert time.monotonic() < deadline, {topic: len(messages) for topic, messages in self.seen.items()}
            rclpy.spin_once(self.node, timeout_sec=0.05)
        return result

    def known(self) -> bool:
        """Whether the world knows of our clients, too: an answer sent before that is lost."""
        return bool(self.seen["episode_status"])

    def goal(self, **fields):
        ready = self.action.server_is_ready
        assert self.until(lambda: ready() and self.chunks.get_subscription_count() and self.known())
        handle = self.action.send_goal_async(RunEpisode.Goal(seed=1, **fields))
        self.until(handle.done)
        return handle.result()

    def result(self, handle):
        future = handle.get_result_async()
        self.until(future.done)
        return future.result().result

    def reset(self, **fields):
        assert self.until(lambda: self.resetting.service_is_ready() and self.known())
        future = self.resetting.call_async(ResetWorld.Request(**fields))
        self.until(future.done)
        return future.result()

    def state(self) -> int:
        return self.seen["episode_status"][-1].state

    def chunk(self, step: int, rows: np.ndarray, **fields) -> None:
        message = ActionChunk(step=step, action_space="cartesian_velocity", dt=1 / 15, execute_steps=len(rows))
        message.horizon, message.action_dim = rows.shape
        message.actions = array.array("d", rows.ravel().tolist())
        for name, value in fields.items():
            setattr(message, name, value)
        self.chunks.publish(message)


@pytest.fixture
def client(environment, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    rclpy.init()
    client = Client("/real")
    yield client
    client.node.destroy_node()
    rclpy.shutdown()


def stamps(messages) -> list[int]:
    return [to_nanoseconds(message.header.stamp) for message in messages]


def test_lockstep_waits_answers_every_step_and_never_goes_back(client, recorded):
    recorded(max_steps=12)
    result = None
    for count in (1, 2):
        handle = client.goal()
        for step in (0, 6):
            client.until(
                lambda step=step, count=count: (
                    len({m.episode_id for m in client.seen["reward"] if m.step == step}) == count
                )
            )
            client.chunk(step, np.zeros((6, 7)))
        result = client.result(handle)
    assert (result.outcome, result.steps) == ("failure", 12)
    # An observation is published again when the policy shows up after it.
    client.until(
        lambda: client.state() == FINISHED and len(set(stamps(client.seen["wrist_image_left/image_raw"]))) == 26
    )
    expected = sorted(set(stamps(client.seen["reward"])))
    assert np.diff(expected).tolist() == [1_000_000_000 // 15] * 25
    for topic, messages in client.seen.items():
        if topic != "episode_status":
            assert stamps(messages) == sorted(stamps(messages)), topic
            assert sorted(set(stamps(messages))) == expected, topic
    source = load_source("droid")
    image = image_array(client.seen["wrist_image_left/image_raw"][0])
    assert image.shape == (48, 80, 3)
    np.testing.assert_allclose(image.mean(), source.images["wrist_image_left"][0].mean(), atol=2)
    joints = {stamps([message])[0]: message.position[:7] for message in client.seen["joint_states"]}
    np.testing.assert_allclose(joints[expected[12]], source.joint_position[12])
    assert not np.any(client.seen["wrist_image_left/camera_info"][0].k)  # DROID's cameras are not calibrated here


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"action_dim": 6}, "numbers"),
        ({"actions": array.array("d", [float("nan")] * 42)}, "NaN"),
        ({"action_space": "torque"}, "There is no action space called 'torque'"),
        ({"dt": 0.1}, "1/15 s"),
    ],
)
def test_wrong_chunk_aborts_the_episode_and_the_node_lives_on(client, recorded, change, sentence):
    world = recorded(max_steps=6)
    handle = client.goal()
    client.until(lambda: client.seen["reward"])
    client.chunk(0, np.zeros((6, 7)), **change)
    result = client.result(handle)
    assert result.outcome == "aborted"
    assert sentence in result.message
    client.until(lambda: client.state() == ABORTED)
    assert sentence in client.seen["episode_status"][-1].message
    world.wait_for(sentence)
    handle = client.goal()
    client.until(lambda: client.seen["reward"][-1].episode_id != result.episode_id)
    client.chunk(0, np.zeros((6, 7)))
    assert client.result(handle).outcome == "failure"


def test_out_of_range_is_clipped_with_a_warning_and_bad_sources_are_refused(client, recorded):
    world = recorded(max_steps=6)
    answer = client.reset(source="/nowhere")
    assert not answer.success
    assert "There is no episode at '/nowhere'" in answer.message
    result = client.result(client.goal(start=1000))
    assert "leaves nothing to play" in result.message
    answer = client.reset(seed=3)
    assert answer.success
    client.until(lambda: client.seen["reward"])
    assert client.seen["reward"][0].episode_id == answer.episode_id
    client.chunk(0, np.full((6, 7), 3.0))
    client.until(lambda: client.state() == FINISHED)
    world.wait_for("out of range")


def test_a_policy_may_come_after_the_episode_has_begun(client, recorded, start):
    recorded(max_steps=6)
    handle = client.goal()
    client.until(lambda: client.seen["reward"])
    start("policy", policy="hold")
    assert client.result(handle).steps == 6


def test_cancelling_aborts(client, recorded):
    recorded()
    handle = client.goal()
    client.until(lambda: client.seen["reward"])
    handle.cancel_goal_async()
    assert client.result(handle).message == "cancelled"
    client.until(lambda: client.state() == ABORTED)


def test_a_world_that_waits_in_vain_says_who_is_missing(client, recorded):
    world = recorded()
    client.goal()
    world.wait_for("No action chunk for step 0")
    assert "s: the policy is silent." in world.output


def test_two_graphs_on_one_domain_do_not_mix(client, recorded):
    recorded(max_steps=6)
    other = recorded(max_steps=6, namespace="/other")
    other.wait_for("ready")
    handle = client.goal()
    client.until(lambda: client.seen["reward"])
    client.chunk(0, np.zeros((6, 7)))
    assert client.result(handle).steps == 6
    assert "Episode" not in other.output


def test_a_follower_takes_the_leaders_chunks(client, recorded):
    recorded(max_steps=12)
    recorded("-r", "action_chunk:=/real/action_chunk", max_steps=12, namespace="/other")
    other = ActionClient(client.node, RunEpisode, "/other/run_episode")
    client.listen("/other/episode_status", EpisodeStatus, qos.STATUS)
    client.until(lambda: other.server_is_ready() and client.seen["/other/episode_status"])
    for seed in range(2):  # chunks may come before the follower's episode, as in the first round
        leader = client.goal()
        count = len(client.seen["reward"])
        name = client.until(lambda n=seed: [m for m in client.seen["reward"] if m.step == 0][n:])[0].episode_id
        for step in (0, 6):
            client.chunk(step, np.zeros((6, 7)), episode_id=name)
        assert client.result(leader).steps == 12, count
        sent = other.send_goal_async(RunEpisode.Goal(seed=seed))
        client.until(sent.done)
        assert client.result(sent.result()).steps == 12


@pytest.mark.parametrize(("world", "sentence"), [("moon", "There is no world called 'moon'")])
def test_unknown_world_ends_with_its_sentence(start, world, sentence):
    node = start("world", world=world)
    assert node.wait() == 2
    assert sentence in node.output


def test_unknown_policy_and_replay_without_episode_end_with_a_sentence(start):
    assert start("policy", policy="genius").wait() == 2
    node = start("policy", policy="replay")
    assert node.wait() == 2
    assert "source:=droid" in node.output
