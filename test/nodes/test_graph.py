"""Whole graphs of real processes: what a user sees, and what happens when a node dies."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import numpy as np
import pytest

from wvl_ros.sans.bags.reader import read_bag
from wvl_ros.sans.droid import read_video
from wvl_ros.sans.render import find_reference
from wvl_ros.sans.sources import load_source

LISTENED = {"wait_for": "['action_chunk', 'recorded_episode']"}  # no step may pass before the recorder listens


def only_recording(out: Path) -> Path:
    """The one recording in a folder; there must be no unfinished one beside it."""
    folders = list(out.iterdir())
    assert len(folders) == 1, folders
    assert not folders[0].name.startswith(".")
    return folders[0]


def test_replay_is_recorded_exactly_and_rendered(start, recorded, tmp_path):
    out = tmp_path / "out"
    world, policy = recorded(max_steps=31), start("policy", policy="replay", source="droid")
    recorder = start("recorder", out=out)
    runner = start("runner", episodes=2, seed=5, **LISTENED)
    assert runner.wait() == 0, runner.output
    assert "0 of 2 episodes succeeded" in runner.output  # cut off before the episode's own end
    original = load_source("droid")
    recordings = sorted(out.iterdir())
    assert len(recordings) == 2
    for number, folder in enumerate(recordings):
        assert str(folder / "bag") in runner.output
        episode = read_bag(folder / "bag")
        assert len(episode) == 32
        assert episode.extra["seed"] == 5 + number
        assert (episode.outcome, episode.instruction) == ("failure", original.instruction)
        np.testing.assert_array_equal(episode.action, original.action[:31])
        np.testing.assert_allclose(episode.joint_position, original.joint_position[:32])
        np.testing.assert_allclose(episode.gripper_position, original.gripper_position[:32])
        np.testing.assert_allclose(episode.cartesian_position, original.cartesian_position[:32], atol=1e-12)
        assert len(read_video(folder / "rollout.mp4")) == 32
        assert (folder / "contact_sheet.png").read_bytes().startswith(b"\x89PNG")
    for node in (world, policy, recorder):
        assert node.end() == 0
        assert "Traceback" not in node.output


def test_a_second_world_follows_and_is_shown_above(start, recorded, tmp_path):
    out = tmp_path / "out"
    recorded(max_steps=16)
    recorded("-r", "action_chunk:=/real/action_chunk", namespace="/other")
    start("policy", policy="replay", source="droid")
    start("recorder", out=out, reference="/other")
    runner = start("runner", episodes=2, worlds="['run_episode', '/other/run_episode']", **LISTENED)
    assert runner.wait() == 0, runner.output
    for folder in out.iterdir():
        episode = read_bag(folder / "bag")
        reference = find_reference(folder / "bag", episode)
        assert reference.episode.episode_id != episode.episode_id
        assert (
            len(reference.episode) >= 17
        )  # it has the whole recording to play, so it is stopped when the first has ended
        assert read_video(folder / "rollout.mp4").shape[1] > 2 * 192


def test_killed_policy_aborts_the_episode_everywhere(start, recorded, tmp_path):
    out = tmp_path / "out"
    world, policy = recorded(realtime=True), start("policy", policy="hold")
    recorder, runner = start("recorder", out=out, render=False), start("runner", **LISTENED)
    runner.wait_for("episode 1/1  step 1")
    policy.process.kill()
    assert runner.wait() == 1
    assert "The policy node is gone" in runner.output
    assert "aborted" in runner.output
    world.wait_for("The policy node is gone: episode")
    assert read_bag(only_recording(out) / "bag").outcome == "aborted"
    assert (world.end(), recorder.end(signal.SIGTERM)) == (0, 0)


def test_killed_world_closes_the_bag(start, recorded, tmp_path):
    out = tmp_path / "out"
    world, policy = recorded(realtime=True), start("policy", policy="hold")
    recorder, runner = start("recorder", out=out, render=False), start("runner", **LISTENED)
    runner.wait_for("episode 1/1  step 1")
    world.process.kill()
    assert runner.wait() == 1
    assert "The world node of '/real/episode_status' is gone" in runner.output
    policy.wait_for("The world node is gone: episode")
    recorder.wait_for("marked aborted: the world node is gone")
    assert read_bag(only_recording(out) / "bag").outcome == "aborted"
    assert (policy.end(), recorder.end()) == (0, 0)


def test_killed_recorder_ends_the_run(start, recorded, tmp_path):
    recorded(realtime=True)
    start("policy", policy="hold")
    recorder, runner = start("recorder", out=tmp_path / "out", render=False), start("runner", **LISTENED)
    runner.wait_for("episode 1/1  step 1")
    recorder.process.kill()
    assert runner.wait() == 1
    assert "The recorder node is gone" in runner.output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_all_nodes_cleanly_within_an_episode(start, recorded, tmp_path, number):
    out = tmp_path / "out"
    nodes = [
        recorded(realtime=True),
        start("policy", policy="hold"),
        start("recorder", out=out),
        start("runner", **LISTENED),
    ]
    nodes[-1].wait_for("episode 1/1  step 1")
    time.sleep(0.5)  # the bag needs a whole step to be read, and a busy machine is slow to record one
    for node in nodes:
        node.process.send_signal(number)
    for node in nodes:
        assert node.wait() == 0, node.output
        assert "Traceback" not in node.output
    assert read_bag(only_recording(out) / "bag").outcome == "aborted"
    # The recorder waited for what the world said last, instead of concluding it.
    assert "marked aborted" not in nodes[2].output
