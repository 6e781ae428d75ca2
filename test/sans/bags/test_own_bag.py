"""Bags of our own nodes where the simple case ends: several episodes, lost images, clocks, labels."""

from __future__ import annotations

import numpy as np
import pytest
from rosbags.rosbag2 import StoragePlugin, Writer

from wvl_ros.errors import BagError
from wvl_ros.sans.bags.label import label_bag
from wvl_ros.sans.bags.reader import bag_episodes, read_bag
from wvl_ros.sans.bags.recording import message_stamp
from wvl_ros.sans.bags.streams import Bag
from wvl_ros.sans.bags.topics import TOPICS, message_types
from wvl_ros.sans.droid import read_droid
from wvl_ros.sans.export import export_bag
from wvl_ros.sans.sources import EXAMPLE_FOLDER
from wvl_ros.worlds.droid import CAMERAS

START = 1_700_000_000_000_000_000


def rows(bag):
    """(topic, data) of all messages, topic by topic in the order of recording."""
    with Bag(bag) as source:
        streams = source.scan(dict.fromkeys(source.topics, True))
        return [(name, data) for name, stream in streams.items() for data in stream.data]


def write(path, messages, shift=lambda i, topic, stamp: stamp):
    """A bag of (topic, data) rows; recorded when `shift` says."""
    with Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        connections = {}
        for i, (topic, data) in enumerate(messages):
            if topic not in connections:
                kind = TOPICS[topic.split("/", 2)[2]]
                connections[topic] = writer.add_connection(topic, kind, typestore=message_types())
            writer.write(connections[topic], shift(i, topic, message_stamp(data)), data)
    return path


@pytest.fixture
def recorded(tmp_path, make_episode):
    """Makes a recorded episode: seed, steps, first stamp."""

    def record(seed, steps=9, start=START):
        episode = make_episode(steps=steps, seed=seed, size=16)
        return episode, export_bag(episode, tmp_path / f"recorded_{seed}", start=start).bag

    return record


def test_two_episodes_interleaved_in_one_bag_are_two(tmp_path, recorded):
    (one, bag1), (two, bag2) = recorded(1), recorded(2, 13, START + 30_000_000)
    mixed = sorted([*rows(bag1), *rows(bag2)], key=lambda row: message_stamp(row[1]))
    path = write(tmp_path / "mixed", mixed)
    with Bag(path) as bag:
        found = {name: read().load() for name, read in bag_episodes(bag)}
    assert list(found) == [one.episode_id, two.episode_id]
    for episode in (one, two):
        got = found[episode.episode_id]
        np.testing.assert_array_equal(got.joint_position, episode.joint_position)
        np.testing.assert_array_equal(got.action, episode.action)
        assert got.image_stride == 3
        for camera in CAMERAS:
            np.testing.assert_array_equal(got.images[camera], episode.images[camera])
    with pytest.raises(BagError, match="more than one episode, name one: synthetic_1, synthetic_2"):
        read_bag(path)
    assert len(read_bag(path, episode_id="synthetic_2")) == 13


def test_a_clock_set_back_between_episodes_is_no_harm(tmp_path, recorded):
    (one, bag1), (two, bag2) = recorded(1), recorded(2, start=START - 100_000_000)  # overlaps the first
    messages = [*rows(bag1), *rows(bag2)]
    path = write(tmp_path / "back", messages, lambda i, topic, stamp: START + i)
    with Bag(path) as bag:
        found = {name: read().load() for name, read in bag_episodes(bag)}
    for episode in (one, two):
        np.testing.assert_array_equal(found[episode.episode_id].images[CAMERAS[0]], episode.images[CAMERAS[0]])
        np.testing.assert_array_equal(found[episode.episode_id].joint_position, episode.joint_position)


def test_a_clock_that_jumps_back_within_an_episode_is_named(tmp_path, recorded):
    _, bag = recorded(1)
    store, messages = message_types(), rows(bag)
    for i, (topic, data) in enumerate(messages):
        if topic.endswith("/reward"):
            message = store.deserialize_cdr(data, TOPICS["reward"])
            if message.step >= 5:
                message.header.stamp.sec -= 60
                messages[i] = (topic, bytes(store.serialize_cdr(message, TOPICS["reward"])))
    path = write(tmp_path / "jump", messages, lambda i, topic, stamp: START + i)
    with pytest.raises(BagError, match=r"jumps back by 59\.9\d+ s at step 5 of episode 'synthetic_1'"):
        read_bag(path)


def test_a_lost_image_is_a_hole(tmp_path, make_episode):
    episode = make_episode(steps=9, size=16)
    stacks = {camera: np.repeat(stack, 3, axis=0)[:9] for camera, stack in episode.images.items()}
    episode.images, episode.image_stride = stacks, 1
    messages = rows(export_bag(episode, tmp_path, start=START).bag)
    lost = [i for i, (topic, _) in enumerate(messages) if topic.endswith("wrist_image_left/image_raw")][4]
    path = write(tmp_path / "lost", messages[:lost] + messages[lost + 1 :])
    with Bag(path) as bag, pytest.raises(BagError, match=r"wrist_image_left' has no image within 33 ms of step 4 "):
        dict(bag_episodes(bag))[episode.episode_id]()
    found = read_bag(path)  # the simple entry holds the one before
    np.testing.assert_array_equal(found.images["wrist_image_left"][4], stacks["wrist_image_left"][3])


def test_a_label_given_later_counts(recorded):
    _, bag = recorded(1)
    assert (read_bag(bag).outcome, read_bag(bag).outcome_source) == ("success", "world")
    label_bag(bag, "near_success", "operator")
    assert (read_bag(bag).outcome, read_bag(bag).outcome_source) == ("near_success", "operator")


def test_a_droid_episode_survives_the_way_through_a_bag(tmp_path):
    episode = read_droid(EXAMPLE_FOLDER)
    found = read_bag(export_bag(episode, tmp_path).bag)
    assert found.image_stride == episode.image_stride == 3
    for camera in CAMERAS:
        np.testing.assert_array_equal(found.images[camera], episode.images[camera])
    np.testing.assert_array_equal(found.joint_position, episode.joint_position)
    np.testing.assert_array_equal(found.action, episode.action)
