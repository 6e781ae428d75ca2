"""The trainer's reader: decoded once, windows exact at episode borders, balanced, the same again for the same seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from wvl_ros.errors import ConfigError, EpisodeError
from wvl_ros.sans.cache import FOLDER, Cache
from wvl_ros.sans.dataset import Dataset
from wvl_ros.sans.episode import Episode
from wvl_ros.sans.store.format import DatasetFormat
from wvl_ros.sans.windows import WindowConfig, WindowSampler, window_cache
from wvl_ros.worlds import droid
from wvl_ros.worlds.recorded import commanded_poses

SIZE = 32


def coloured(episode: Episode, number: int) -> Episode:
    """Pictures that say which episode, camera and image they are."""
    count = len(episode.images[droid.CAMERAS[0]])
    images = {
        camera: np.stack([np.full((SIZE, SIZE, 3), 60 * number + 20 * c + i, np.uint8) for i in range(count)])
        for c, camera in enumerate(droid.CAMERAS)
    }
    return replace(episode, images=images)


@pytest.fixture
def folder(tmp_path: Path, make_episode: Callable[..., Episode]) -> Path:
    for i, (outcome, steps) in enumerate([("success", 13), ("near_success", 9), ("failure", 40), ("failure", 40)]):
        episode = replace(make_episode(seed=i, outcome=outcome, steps=steps, size=SIZE), iteration=i // 2)
        coloured(episode, i).save(tmp_path / "data" / f"{i}.safetensors")
    return tmp_path / "data"


def open_windows(folder: Path) -> Cache:
    return window_cache(folder, height=SIZE, width=SIZE)


def shown(images: np.ndarray) -> np.ndarray:
    """(episode, camera, image) of pictures by `coloured`."""
    value = images[..., 0, 0, 0].astype(int)
    return np.stack([value // 60, value % 60 // 20, value % 20], -1)


def test_a_window_inside_an_episode_holds_its_frames_states_actions_and_rewards(folder: Path) -> None:
    cache = open_windows(folder)
    sampler = WindowSampler(cache, WindowConfig(frames=3, history=1, every=3))
    w = sampler.windows(np.array([0]), np.array([6]))
    episode = Episode.load(folder / "0.safetensors")
    steps = [3, 6, 9]
    assert shown(w.images)[0, :, :, 0].tolist() == [[0, 0, 0]] * 3
    assert shown(w.images)[0, :, :, 1].tolist() == [[0, 1, 2]] * 3
    assert shown(w.images)[0, :, :, 2].tolist() == [[1] * 3, [2] * 3, [3] * 3]
    np.testing.assert_allclose(w.joint_position[0], episode.joint_position[steps], atol=1e-6)
    np.testing.assert_allclose(w.cartesian_position[0], episode.cartesian_position[steps], atol=1e-6)
    np.testing.assert_allclose(w.gripper_position[0], episode.gripper_position[steps], atol=1e-6)
    np.testing.assert_allclose(w.action[0].reshape(9, 7), episode.action[3:12], atol=1e-6)
    assert w.reward[0].tolist() == [0.0, 0.0, 1.0]  # a success state from step 9 on
    assert w.valid.all()
    assert w.action_valid.all()
    assert (w.instruction, w.outcome) == ([episode.instruction], ["success"])


def test_beyond_the_borders_the_first_and_last_frames_are_held_and_not_valid(folder: Path) -> None:
    cache = open_windows(folder)
    sampler = WindowSampler(cache, WindowConfig(frames=6, history=2, every=3))
    episode = Episode.load(folder / "1.safetensors")  # 9 steps: images at 0, 3 and 6
    w = sampler.windows(np.array([1]), np.array([0]))
    assert shown(w.images)[0, :, 0].tolist() == [[1, 0, 0], [1, 0, 0], [1, 0, 0], [1, 0, 1], [1, 0, 2], [1, 0, 2]]
    assert w.valid[0].tolist() == [False, False, True, True, True, False]
    np.testing.assert_allclose(w.joint_position[0], episode.joint_position[[0, 0, 0, 3, 6, 6]], atol=1e-6)
    commands = commanded_poses(episode)
    before = np.tile(commands[0], (2, 3, 1))
    after = np.stack([commands[1:4], commands[4:7], commands[[7, 8, 8]], commands[[8, 8, 8]]])
    np.testing.assert_allclose(w.action[0], np.concatenate([before, after]), atol=1e-6)
    assert w.action_valid[0].tolist() == [[False] * 3] * 2 + [[True] * 3] * 2 + [[True, True, False], [False] * 3]
    last = sampler.windows(np.array([1]), np.array([6]))
    assert shown(last.images)[0, :, 0, 2].tolist() == [0, 1, 2, 2, 2, 2]
    assert shown(last.images)[0, :, 0, 0].tolist() == [1] * 6  # nothing of the neighbours


def test_draws_are_the_same_for_the_same_seed_whatever_the_batch_and_ranks(folder: Path) -> None:
    cache = open_windows(folder)

    def drawn(config: WindowConfig, batches: list[int]) -> list[tuple[int, int]]:
        sampler = WindowSampler(cache, config)
        parts = [sampler.sample(batch) for batch in batches]
        return [(int(e), int(s)) for part in parts for e, s in zip(part.episode, part.step, strict=True)]

    whole = drawn(WindowConfig(seed=3), [24])
    assert drawn(WindowConfig(seed=3), [1, 7, 16]) == whole
    assert drawn(WindowConfig(seed=4), [24]) != whole
    halves = [drawn(WindowConfig(seed=3, rank=rank, ranks=2), [5, 7]) for rank in (0, 1)]
    assert [window for pair in zip(*halves, strict=True) for window in pair] == whole
    stopped = WindowSampler(cache, WindowConfig(seed=3))
    stopped.sample(10)
    resumed = WindowSampler(open_windows(folder), WindowConfig(seed=3))
    resumed.restore(stopped.state())
    np.testing.assert_array_equal(resumed.sample(14).step, [step for _, step in whole[10:]])
    with pytest.raises(ConfigError, match="seed 3"):
        WindowSampler(cache, WindowConfig(seed=4)).restore(stopped.state())


def test_outcomes_and_iterations_are_balanced_as_asked(folder: Path) -> None:
    cache = open_windows(folder)

    def shares(**options: object) -> np.ndarray:
        sampler = WindowSampler(cache, WindowConfig(frames=1, history=0, **options))  # type: ignore[arg-type]
        return np.bincount(sampler.sample(3000).episode, minlength=4) / 3000

    # Each outcome equally often, though failures are longer and twice as many.
    np.testing.assert_allclose(shares(), [1 / 3, 1 / 3, 1 / 6, 1 / 6], atol=0.04)
    np.testing.assert_allclose(shares(outcome_weights={"success": 3, "failure": 1}), [0.75, 0, 0.125, 0.125], atol=0.04)
    np.testing.assert_allclose(shares(iteration_weights={1: 1.0}), [0, 0, 0.5, 0.5], atol=0.04)
    np.testing.assert_allclose(shares(natural=True), np.array([4, 3, 13, 13]) / 33, atol=0.04)
    with pytest.raises(ConfigError, match="outcomes are failure"):
        shares(outcome_weights={"aborted": 1.0})


def test_the_cache_grows_with_the_episodes_and_survives_a_kill(
    folder: Path, make_episode: Callable[..., Episode]
) -> None:
    before = open_windows(folder)
    target = next((folder / FOLDER).iterdir())
    size = (target / "frames.bin").stat().st_size
    index = (target / "episodes.jsonl").read_bytes()
    for name in ("frames.bin", "numbers.bin", "episodes.jsonl"):  # what a build leaves that was killed halfway
        with (target / name).open("ab") as file:
            file.write(b'{"torn')
    coloured(make_episode(seed=9, steps=7, size=SIZE), 2).save(folder / "9.safetensors")
    after = open_windows(folder)
    assert (target / "episodes.jsonl").read_bytes().startswith(index)
    assert (target / "frames.bin").stat().st_size == size + 3 * 3 * SIZE * SIZE * 3
    assert len(after) == len(before) + 1
    assert after.fingerprint != before.fingerprint
    np.testing.assert_array_equal(after.frames[: len(before.frames)], before.frames)
    w = WindowSampler(after, WindowConfig(frames=1, history=0)).windows(np.array([4]), np.array([6]))
    assert shown(w.images)[0, 0].tolist() == [[2, 0, 2], [2, 1, 2], [2, 2, 2]]
    (folder / "3.safetensors").unlink()
    assert len(open_windows(folder)) == 4
    replace(Episode.load(folder / "0.safetensors"), instruction="another").save(folder / "0.safetensors")
    changed = open_windows(folder)
    assert changed.entries[0].instruction == "another"
    np.testing.assert_array_equal(changed.frames[changed.frame_start[0]], before.frames[0])


def test_a_dataset_s_labels_are_followed_without_decoding_it_again(
    tmp_path: Path, make_episode: Callable[..., Episode]
) -> None:
    format = DatasetFormat(dict.fromkeys(droid.CAMERAS, (SIZE, SIZE)), codec="lossless")
    dataset = Dataset.create(tmp_path / "sans", format)
    for i in range(2):
        dataset.append(coloured(make_episode(seed=i, steps=13, outcome="failure", size=SIZE), i))
    before = open_windows(dataset.root)
    dataset.label(1, "success")
    dataset.append(coloured(make_episode(seed=2, steps=7, size=SIZE), 2))
    after = open_windows(dataset.root)
    assert len(after.frames) == len(before.frames) + 3  # of the new episode alone
    w = WindowSampler(after, WindowConfig(frames=2, history=0)).windows(np.array([1, 2]), np.array([9, 0]))
    assert w.outcome == ["success", "success"]
    assert w.reward[0].tolist() == [0.0, 1.0]
    assert shown(w.images)[:, :, 0].tolist() == [[[1, 0, 3], [1, 0, 4]], [[2, 0, 0], [2, 0, 1]]]
    assert dataset.verify() == []


def test_what_does_not_fit_is_said(folder: Path, tmp_path: Path, make_episode: Callable[..., Episode]) -> None:
    with pytest.raises(ConfigError, match="an image each 3 steps: set every to a multiple of it, not 2"):
        WindowSampler(open_windows(folder), WindowConfig(every=2))
    with pytest.raises(ConfigError, match="fewer frames of history"):
        WindowConfig(frames=4, history=4)
    episode = make_episode()
    del episode.images["wrist_image_left"]
    episode.save(tmp_path / "two" / "0.safetensors")
    with pytest.raises(EpisodeError, match="lacks the camera 'wrist_image_left'"):
        open_windows(tmp_path / "two")
    with pytest.raises(EpisodeError, match="holds no episodes"):
        open_windows(tmp_path / "empty")
