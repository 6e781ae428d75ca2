"""What a policy learns from: correct labels, key places in hindsight, and only useful episodes are read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from wvl_ros.errors import EpisodeError
from wvl_ros.policies.network import PolicyConfig
from wvl_ros.policies.tokenizer import WordTokenizer
from wvl_ros.sans.dataset import Dataset
from wvl_ros.sans.episode import Episode
from wvl_ros.sans.store.format import DatasetFormat
from wvl_ros.training.demonstrations import Disturbance, record_demonstration
from wvl_ros.training.frame_cache import open_cache
from wvl_ros.training.samples import build_samples, chunk_targets, key_places, read_episodes
from wvl_ros.worlds import droid

CALM = Disturbance(noise=0.0, pushes=0.0, displaced=0.0)
CONFIG = PolicyConfig(vocabulary=("<pad>", "<unk>", "red"))


@pytest.fixture(scope="module")
def calm() -> Episode:
    return record_demonstration("pick_place", 100_000, CALM)


@pytest.fixture(scope="module")
def disturbed() -> Episode:
    return record_demonstration("pick_place", 100_001, Disturbance(pushes=0.2))


def by_hand(closed: slice, steps: int = 30) -> Episode:
    """An episode that rises by 1 cm a step with the gripper closed during `closed`."""
    poses = np.tile(droid.forward_kinematics(droid.RESET_JOINTS), (steps + 1, 1))
    poses[:, 2] += 0.01 * np.arange(steps + 1)
    action = np.column_stack([poses[1:], np.zeros(steps)])
    action[closed, 6] = 1.0
    image = np.zeros(((steps + 3) // 3, 64, 64, 3), np.uint8)
    return Episode(
        images=dict.fromkeys(droid.CAMERAS, image),
        joint_position=np.tile(droid.RESET_JOINTS, (steps + 1, 1)),
        cartesian_position=poses,
        gripper_position=np.zeros((steps + 1, 1)),
        action=action,
        reward=np.zeros(steps, np.float32),
        task="pick_place",
        instruction="put the red cube on the yellow disk",
        outcome="success",
        image_stride=3,
    )


def test_an_undisturbed_demonstration_succeeds_and_its_chunks_lead_along_it(calm: Episode) -> None:
    assert calm.success
    chunks = chunk_targets(calm, 9)
    poses = np.vstack([calm.commanded_start, calm.action])
    for row, step in enumerate(range(0, len(calm) - 10, 3)):
        actions = droid.convert_chunk(
            chunks[row], "cartesian_velocity", "cartesian_position", calm.joint_position[step], poses[step, :6]
        )
        np.testing.assert_allclose(actions[:, :3], calm.action[step : step + 9, :3], atol=2e-3)
        np.testing.assert_array_equal(actions[:, 6], calm.action[step : step + 9, 6])


def test_labels_are_the_expert_s_and_stop_at_a_push(disturbed: Episode) -> None:
    pushed = disturbed.extra["disturbed"]
    assert isinstance(pushed, list)
    assert pushed
    label = np.asarray(disturbed.extra["label"])
    off = np.linalg.norm(label[:, :3] - disturbed.action[:, :3], axis=1)
    rest = np.setdiff1d(np.arange(len(off)), pushed)
    assert np.median(off[pushed]) > 2 * np.median(off[rest])
    chunks = chunk_targets(disturbed, 9)
    known = ~np.isnan(chunks).any(-1)
    for row, step in enumerate(range(0, len(disturbed) - 1, 3)):
        ahead = [p - step for p in pushed if step <= p < step + 9]
        length = min([*ahead, 9, len(disturbed) - 1 - step])
        np.testing.assert_array_equal(known[row], np.arange(9) < length)


def test_key_places_are_where_the_gripper_closed_and_opened() -> None:
    places = key_places(by_hand(slice(10, 20)))
    height = droid.forward_kinematics(droid.RESET_JOINTS)[2]
    np.testing.assert_allclose(places[:4, 2], height + 0.10)
    np.testing.assert_allclose(places[:, 5], height + 0.20)


def test_where_a_thing_was_grasped_is_not_asked_once_it_is_held() -> None:
    places = key_places(by_hand(slice(10, 20)))
    assert np.isnan(places[4:, :3]).all()
    assert np.isfinite(places[:, 3:]).all()


def test_key_places_look_ahead_to_the_next_grasp_and_to_the_last_release() -> None:
    episode = by_hand(slice(3, 9))
    episode.action[18:25, 6] = 1.0
    height = droid.forward_kinematics(droid.RESET_JOINTS)[2]
    places = key_places(episode)
    np.testing.assert_allclose(places[:, 2] - height, [0.03, 0.03, np.nan, *[0.18] * 4, *[np.nan] * (len(places) - 7)])
    np.testing.assert_allclose(places[:, 5] - height, 0.25)


def test_work_begins_where_a_closed_hand_comes_down() -> None:
    episode = by_hand(slice(3, 20))  # closes on its way, high up
    episode.cartesian_position[12:20, 2] = 0.12
    np.testing.assert_allclose(key_places(episode)[:5, 2], 0.12)


def test_without_grasps_the_lowest_stretch_counts() -> None:
    episode = by_hand(slice(0, 30))
    episode.cartesian_position[8:15, 2] = 0.12
    np.testing.assert_allclose(key_places(episode)[:3, 2], 0.12)


def test_a_recorded_push_has_key_places_at_the_table() -> None:
    places = key_places(record_demonstration("push", 100_003, CALM))
    assert np.isfinite(places[0]).all()
    assert (places[0, [2, 5]] < 0.17).all()  # flange height with the fingertips near the table


def test_only_successes_and_disturbed_demonstrations_teach(tmp_path: Path, disturbed: Episode) -> None:
    good = by_hand(slice(10, 20))
    replace(good, outcome="failure").save(tmp_path / "failure.safetensors")
    with pytest.raises(EpisodeError, match="None of the 1 episodes"):
        list(read_episodes([tmp_path]))
    good.save(tmp_path / "good.safetensors")
    replace(disturbed, outcome="failure").save(tmp_path / "disturbed.safetensors")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "frames.safetensors").write_bytes(b"not an episode")
    assert len(list(read_episodes([tmp_path]))) == 2
    (tmp_path / "torn.safetensors").write_bytes(b"not an episode")
    with pytest.raises(EpisodeError, match=r"torn.safetensors' cannot be read"):
        list(read_episodes([tmp_path]))
    with pytest.raises(EpisodeError, match="holds no episodes"):
        list(read_episodes([tmp_path / "empty"]))


def test_a_dataset_teaches_as_its_files_do(tmp_path: Path, disturbed: Episode) -> None:
    good = by_hand(slice(10, 20))
    format = DatasetFormat(dict.fromkeys(droid.CAMERAS, (64, 64)), codec="lossless")
    dataset = Dataset.create(tmp_path / "sans", format)
    for i, episode in enumerate((good, replace(good, outcome="failure"), disturbed)):
        episode.save(tmp_path / "files" / f"{i}.safetensors")
        dataset.append(episode)
    one, other = (build_samples(read_episodes([tmp_path / name]), CONFIG) for name in ("sans", "files"))
    assert len(one) > 0
    for name in ("images", "state", "places"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    torch.testing.assert_close(one.actions, other.actions, equal_nan=True)
    cache = open_cache(tmp_path / "sans", size=64, patch=4, actions_per_frame=3, rig="tabletop")
    same = open_cache(tmp_path / "files", size=64, patch=4, actions_per_frame=3, rig="tabletop")
    for name in ("frames", "kinematics", "actions", "rewards", "calibrated"):
        np.testing.assert_array_equal(getattr(cache, name), getattr(same, name))
    assert cache.outcomes == same.outcomes


def test_samples_line_up(disturbed: Episode) -> None:
    samples = build_samples([by_hand(slice(10, 20)), disturbed], CONFIG)
    assert samples.images.shape[1:] == (2, 3, 64, 64)
    assert len(samples) == len(samples.state) == len(samples.images) == len(samples.places) == len(samples.task)
    first = samples.inputs(np.array([0]), WordTokenizer.from_texts(samples.instructions))
    assert first.words.min() == 0
    assert first.words.max() > 1
    assert not samples.actions[:, 0].isnan().any()
    missing = replace(disturbed, images={"wrist_image_left": disturbed.images["wrist_image_left"]})
    with pytest.raises(EpisodeError, match="lacks the camera 'exterior_image_1_left'"):
        build_samples([missing], CONFIG)
