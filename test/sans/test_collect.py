"""`wvl collect`: every outcome, resumable, reproducible."""

import argparse
from pathlib import Path

import numpy as np
import pytest

from wvl_ros.commands import collect
from wvl_ros.errors import ConfigError, UnknownNameError
from wvl_ros.sans.dataset import Dataset
from wvl_ros.sans.episode import Episode
from wvl_ros.worlds.tabletop import TabletopWorld
from wvl_ros.worlds.tasks import MISTAKE


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    collect.add_arguments(parser)
    return parser.parse_args(words)


def test_collects_what_is_missing_and_the_same_again(tmp_path: Path) -> None:
    words = ("--task", "pick_place", "--episodes", "2", "--size", "32", "--out")
    first = collect.run(arguments(*words, str(tmp_path / "a")))
    assert (first["collected"], first["kept"]) == (2, 0)
    again = collect.run(arguments(*words, str(tmp_path / "a")))
    assert (again["collected"], again["kept"]) == (0, 2)
    collect.run(arguments(*words, str(tmp_path / "b")))
    for path in sorted((tmp_path / "a").iterdir()):
        one, other = Episode.load(path), Episode.load(tmp_path / "b" / path.name)
        assert np.array_equal(one.action, other.action)
        assert np.array_equal(one.images["wrist_image_left"], other.images["wrist_image_left"])
        assert one.outcome_source == "world"
        assert one.outcome in ("success", "near_success", "failure")
        assert (one.outcome == "success") == bool(one.reward.any())
        assert (len(one.images["wrist_image_left"]), len(one)) == (21, 61)
        things = np.array(one.extra["objects"])  # where things are at every step, for training a world model
        assert things.shape == (61, things.shape[1], 5)
        start = TabletopWorld(image_height=32, image_width=32)
        start.reset(seed=one.extra["seed"], options={"task": "pick_place", "variant": one.extra["variant"]})
        assert np.abs(things[0] - start.object_poses()).max() < 1e-3
        if one.outcome == "success":
            assert np.linalg.norm(things[-1, :, :2] - things[0, :, :2], axis=1).max() > 0.05


def test_collects_into_a_dataset_with_the_world_as_judge(tmp_path: Path) -> None:
    words = ("--task", "push", "--size", "32", "--out", str(tmp_path / "sans"))
    first = collect.run(arguments(*words, "--episodes", "1", "--format", "sans"))
    again = collect.run(arguments(*words, "--episodes", "2"))  # a dataset is known when it is there
    assert [(r["collected"], r["kept"]) for r in (first, again)] == [(1, 0), (1, 1)]
    dataset = Dataset.open(tmp_path / "sans")
    assert [record.episode_id for record in dataset.records] == ["push_0000000", "push_0000001"]
    assert {record.outcome_source for record in dataset.records} == {"world"}
    assert len(dataset.read(0).images["wrist_image_left"]) == 21
    with pytest.raises(ConfigError, match="is a SANS dataset"):
        collect.run(arguments(*words, "--format", "files"))


def test_a_policy_plays_the_same_again_and_is_named(tmp_path: Path) -> None:
    words = ("--task", "push", "--episodes", "2", "--policy", "small", "--temperature", "1", "--size", "64", "--out")
    for name in ("a", "b"):
        assert collect.run(arguments(*words, str(tmp_path / name)))["collected"] == 2
    calm = collect.run(
        arguments("--task", "push", "--policy", "small", "--episodes", "1", "--out", str(tmp_path / "c"))
    )
    assert calm["collected"] == 1
    one, again, other = (Episode.load(tmp_path / name / "push_0000000.safetensors") for name in "abc")
    assert (one.source, one.policy, one.outcome_source) == ("policy/tabletop", "small", "world")
    assert np.array_equal(one.action, again.action)
    assert not np.array_equal(one.action, other.action)


def test_a_mistaken_player_does_elsewhere_what_would_have_been_right(tmp_path: Path) -> None:
    words = ("--task", "pick_place", "--mistaken", "--episodes", "6", "--size", "64", "--stride", "60", "--out")
    counted = collect.run(arguments(*words, str(tmp_path / "expert")))["outcomes"]
    assert counted.get("pick_place/success", 0) in range(1, 6)  # some mistakes do no harm
    collect.run(arguments("--policy", "small", *words[:4], "1", *words[5:], str(tmp_path / "policy")))
    for player in ("expert", "policy"):
        episode = Episode.load(tmp_path / player / "pick_place_0000000.safetensors")
        world = TabletopWorld("pick_place", cameras=False)
        world.reset(seed=0)
        true = world.table_state()
        shown, info = TabletopWorld("pick_place", 64, 64).reset(seed=0)
        assert (episode.extra["mode"], episode.source) == ("mistaken places", f"{player}/tabletop")
        assert episode.instruction == info["instruction"]
        assert np.array_equal(episode.images["wrist_image_left"][0], shown["wrist_image_left"])  # the true scene
        world.reset(seed=0, options={"mistaken": "places"})
        believed = world.table_state()
        assert np.linalg.norm(believed.objects - true.objects, axis=1).max() <= MISTAKE + 1e-9
        assert np.linalg.norm(believed.goal - true.goal) <= 0.1 + 1e-9
        assert not np.array_equal(np.append(believed.objects, believed.goal), np.append(true.objects, true.goal))


def test_who_takes_one_thing_for_the_other_fails(tmp_path: Path) -> None:
    words = ("--task", "pick_place", "--mistaken", "things", "--episodes", "4", "--size", "64", "--stride", "60")
    counted = collect.run(arguments(*words, "--out", str(tmp_path)))["outcomes"]
    assert "pick_place/success" not in counted
    kinds = []
    for path in sorted(tmp_path.iterdir()):
        episode = Episode.load(path)
        kinds.append(episode.extra["variant"])
        world = TabletopWorld("pick_place", cameras=False)
        world.reset(seed=int(str(episode.extra["seed"])), options={"variant": kinds[-1], "mistaken": "things"})
        believed = world.table_state()
        reached = np.linalg.norm(episode.cartesian_position[:, :2] - believed.objects[0, :2], axis=1)
        assert reached.min() < 0.01  # the object that it takes for the named one
        assert np.linalg.norm(episode.cartesian_position[-1, :2] - believed.goal[:2]) < 0.1
    assert set(kinds) == {"two_objects", "two_goals"}


def test_bad_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="no task called 'dance'"):
        collect.run(arguments("--task", "dance", "--out", str(tmp_path)))
    with pytest.raises(ConfigError, match="at least 1"):
        collect.run(arguments("--episodes", "0", "--out", str(tmp_path)))
    with pytest.raises(UnknownNameError, match="no mistake called 'names'"):
        TabletopWorld("push", cameras=False).reset(seed=0, options={"mistaken": "names"})
    with pytest.raises(ConfigError, match="leave one out"):
        collect.run(arguments("--mistaken", "--good-only", "--out", str(tmp_path)))
