"""pi0.5 as a policy: what the server is asked, what becomes of its answer, and the arm moving by it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from wvl_ros.errors import ConfigError, ObservationError, PolicyServerError
from wvl_ros.policies.broker import ChunkBroker
from wvl_ros.policies.interface import Policy
from wvl_ros.policies.openpi.policy import DROID_RESPONSE, OpenPiPolicy
from wvl_ros.policies.registry import make_policy
from wvl_ros.sans.sources import EXAMPLE_FOLDER
from wvl_ros.worlds import droid
from wvl_ros.worlds.tabletop import TabletopWorld

Observe = Callable[..., dict[str, np.ndarray]]


@pytest.fixture
def policy(server: Any) -> Iterator[OpenPiPolicy]:
    made = make_policy("openpi", server.address)
    assert isinstance(made, OpenPiPolicy)
    assert isinstance(made, Policy)
    yield made
    made.server.close()


def test_the_server_is_asked_as_openpi_s_droid_client_asks(server: Any, policy: OpenPiPolicy, observe: Observe) -> None:
    policy.act([observe(60), observe(90)], ["push the cube", "stack"])
    first, second = server.requests[1:]
    assert set(first) == {
        "observation/exterior_image_1_left",
        "observation/wrist_image_left",
        "observation/joint_position",
        "observation/gripper_position",
        "prompt",
    }
    assert (first["prompt"], second["prompt"]) == ("push the cube", "stack")
    for request, shade in ((first, 60), (second, 90)):
        for name, grey in (("exterior_image_1_left", shade), ("wrist_image_left", shade + 2)):
            image = request[f"observation/{name}"]
            assert (image.dtype, image.shape) == (np.uint8, (224, 224, 3))
            assert set(np.unique(image)) == {0, grey}  # padded, not stretched
        np.testing.assert_array_equal(request["observation/joint_position"], droid.RESET_JOINTS + shade / 1000)
        np.testing.assert_array_equal(request["observation/gripper_position"], [0.25])


def test_the_other_exterior_camera_goes_under_the_same_name(server: Any, observe: Observe) -> None:
    policy = make_policy("openpi", server.address + "?camera=exterior_image_2_left")
    policy.act([observe(60)], ["push"])
    assert server.requests[-1]["observation/exterior_image_1_left"].max() == 61


def test_before_the_robot_waits_the_server_is_asked_once(server: Any, policy: OpenPiPolicy) -> None:
    """So that it compiles its model, and shows that its policy is one for DROID and how long its chunks are."""
    assert len(server.requests) == 1
    assert server.requests[0]["observation/wrist_image_left"].shape == (224, 224, 3)
    assert (policy.chunk_size, policy.execute_steps, policy.action_space) == (15, 8, "joint_velocity")
    server.answer = lambda request, number: {"actions": np.zeros((5, 8), np.float32)}
    short = OpenPiPolicy.from_address(server.address)
    assert (short.chunk_size, short.execute_steps) == (5, 5)
    chosen = OpenPiPolicy.from_address(server.address + "?execute_steps=3&response=1")
    assert (chosen.execute_steps, chosen.response) == (3, 1.0)


def test_actions_are_clipped_scaled_by_the_arm_s_response_and_the_gripper_decided(
    server: Any, observe: Observe
) -> None:
    raw = np.zeros((10, 8), np.float32)
    raw[0], raw[1], raw[2] = [-7, -1, -0.5, 0, 0.5, 1, 7, 0.5], 0.51, -0.2
    server.answer = lambda request, number: {"actions": raw}
    policy = OpenPiPolicy.from_address(server.address)
    chunk = policy.act([observe()] * 2, ["push"] * 2)
    assert chunk.log_probs is None
    assert (chunk.actions.dtype, chunk.actions.shape) == (np.float64, (2, 10, 8))
    wanted = DROID_RESPONSE * np.array([-1, -1, -0.5, 0, 0.5, 1, 1])
    for row in chunk.actions:
        np.testing.assert_allclose(row[0], [*wanted, 0], rtol=1e-7)
        np.testing.assert_allclose(row[1, :7], DROID_RESPONSE * raw[1, :7].astype(float))
        np.testing.assert_array_equal(row[:4, 7], [0, 1, 0, 0])
        np.testing.assert_array_equal(droid.check_chunk(row, policy.action_space), row)


def test_a_batch_keeps_its_order(server: Any, policy: OpenPiPolicy, observe: Observe) -> None:
    server.answer = lambda request, number: {
        "actions": np.full((15, 8), request["observation/wrist_image_left"].max() / 1000)
    }
    chunk = policy.act([observe(shade) for shade in (10, 30, 20)], ["push"] * 3)
    np.testing.assert_allclose(chunk.actions[:, 3, 2], DROID_RESPONSE * np.array([0.012, 0.032, 0.022]))


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        ({}, r"answered with no 'actions' where a policy for DROID gives numbers of the shape Tx8"),
        ({"actions": np.zeros((15, 7))}, r"'actions' of float64 15x7"),
        ({"actions": np.zeros((0, 8))}, r"'actions' of float64 0x8"),
        ({"actions": np.zeros((1, 15, 8))}, r"'actions' of float64 1x15x8"),
        ({"actions": np.zeros((15, 8), bool)}, r"'actions' of bool 15x8"),
        ({"actions": "a lot"}, r"where a policy for DROID gives numbers"),
        ({"actions": [[0.0] * 8, [0.0] * 7]}, r"where a policy for DROID gives numbers"),
        ({"actions": {"arm": 1}}, r"where a policy for DROID gives numbers"),
        ({"actions": np.full((15, 8), np.nan)}, r"answered with NaN or infinity; check its checkpoint"),
        ({"actions": np.full((15, 8), -np.inf, np.float32)}, r"answered with NaN or infinity"),
        ({"actions": np.zeros((10, 8))}, r"gives 10 actions a chunk where it gave 15 before"),
        (b"\x81", r"no msgpack message"),
        ("RuntimeError: CUDA out of memory", r"failed: RuntimeError: CUDA out of memory"),
    ],
)
def test_an_answer_that_is_no_chunk_is_refused(
    server: Any, policy: OpenPiPolicy, observe: Observe, answer: Any, sentence: str
) -> None:
    server.answer = lambda request, number: answer
    with pytest.raises(PolicyServerError, match=sentence):
        policy.act([observe()], ["push"])
    server.answer = lambda request, number: {"actions": [[0.1] * 8] * 15}  # lists will do, and it goes on
    np.testing.assert_allclose(policy.act([observe()], ["push"]).actions[0, :, 0], 0.1 * DROID_RESPONSE)


def test_an_observation_that_cannot_be_shown_is_refused(server: Any, policy: OpenPiPolicy, observe: Observe) -> None:
    good = observe()
    changes: list[tuple[str, Any, str]] = [
        ("wrist_image_left", None, "The camera 'wrist_image_left' is missing"),
        ("exterior_image_1_left", good["wrist_image_left"].astype(float), "should be uint8 HxWx3"),
        ("exterior_image_1_left", good["wrist_image_left"][..., 0], "but is uint8 180x320"),
        ("joint_position", None, "lacks 'joint_position'"),
        ("joint_position", np.zeros(6), "should be 7 finite numbers"),
        ("gripper_position", np.array([np.nan]), "should be 1 finite numbers"),
    ]
    for name, value, sentence in changes:
        bad = {key: image for key, image in good.items() if key != name} | ({} if value is None else {name: value})
        with pytest.raises(ObservationError, match=sentence):
            policy.act([bad], ["push"])
    with pytest.raises(ObservationError, match="1 observations, but 2 instructions"):
        policy.act([good], ["push", "stack"])
    assert len(server.requests) == 1  # only the first one, none of these


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("camera=wrist_image_left", "looks at an exterior camera"),
        ("execute_steps=0", "executes at least 1 action"),
        ("execute_steps=two", "'execute_steps=two' in the address of a policy server is no number"),
        ("response=1.5", "cannot have the response 1.5"),
        ("response=nan", "cannot have the response nan"),
        ("horizon=3", "has no argument 'horizon'; it may have: camera, execute_steps, response"),
    ],
)
def test_arguments_in_the_address_are_checked(server: Any, query: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        make_policy("openpi", f"{server.address}?{query}")


def test_it_moves_the_arm_on_the_tabletop(server: Any) -> None:
    """Through the chunk broker, which makes poses of the joint velocities; the arm gets where they lead."""
    turn = np.array([0.8, 0.0, 0.0, -0.4, 0.0, 0.4, 0.0, 1.0])
    server.answer = lambda request, number: {"actions": np.tile(turn, (10, 1))}
    policy = OpenPiPolicy.from_address(server.address)
    world, broker = TabletopWorld("push", 64, 64, image_stride=8), ChunkBroker(policy)
    try:
        observation, info = world.reset(seed=3)
        start = observation["joint_position"].copy()
        broker.reset(3)
        for _ in range(16):
            action = broker.action(observation, info["instruction"], info["commanded_pose"])
            observation, _, _, _, info = world.step(action)
    finally:
        world.close()
    assert [request["prompt"] for request in server.requests[1:]] == [info["instruction"]] * 2
    step = DROID_RESPONSE * droid.MAX_JOINT_DELTA * turn[:7]
    wanted = droid.forward_kinematics(start + 16 * step)
    np.testing.assert_allclose(info["commanded_pose"][:3], wanted[:3], atol=0.015)
    assert np.linalg.norm(observation["cartesian_position"][:3] - wanted[:3]) < 0.02  # of 0.3 m that it went
    assert observation["gripper_position"][0] > 0.5


def test_droid_s_velocities_lead_as_far_as_droid_s_arm_went(server: Any, observe: Observe) -> None:
    """The velocities recorded in the DROID episode that ships, answered chunk by chunk: where does each chunk lead?"""
    episode = json.loads((EXAMPLE_FOLDER / "annotation.json").read_text())
    joints = np.array(episode["observation.state.joint_position"])
    poses = np.array(episode["observation.state.cartesian_position"])
    velocities = np.hstack([episode["action.joint_velocity"], np.zeros((len(joints), 1))])
    asked = range(0, len(joints) - 8, 4)
    chunks = iter([velocities[:8], *(velocities[t : t + 8] for t in asked)] * 2)
    server.answer = lambda request, number: {"actions": next(chunks)}
    share = {}
    for response in (DROID_RESPONSE, 1.0):
        policy = OpenPiPolicy.from_address(f"{server.address}?response={response}")
        led, went = [], []
        for t in asked:
            chunk = policy.act([observe()], ["move"]).actions[0]
            led.append(
                droid.convert_chunk(chunk, "joint_velocity", "joint_position", joints[t], poses[t])[-1, :7] - joints[t]
            )
            went.append(joints[t + 8] - joints[t])
        share[response] = float(np.sum(np.multiply(led, went)) / np.sum(np.square(went)))
    assert 0.75 < share[DROID_RESPONSE] < 1.25
    assert share[1.0] > 2.5
