"""Which episodes a training run learns from, and how often each is drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from wvl_ros.errors import ConfigError
from wvl_ros.sans.episode import Episode
from wvl_ros.training.world_model_data import open_data
from wvl_ros.training.world_model_settings import WorldModelTraining

MakeEpisode = Callable[..., Episode]


def _save(folder: Path, make_episode: MakeEpisode, kinds: list[tuple[str, str]]) -> Path:
    for i, (task, outcome) in enumerate(kinds):
        replace(make_episode(seed=i, outcome=outcome), task=task).save(folder / f"{i:02d}.safetensors")
    return folder


def test_tasks_are_drawn_alike_and_near_successes_as_often_as_successes(
    tmp_path: Path, make_episode: MakeEpisode
) -> None:
    kinds = [("push", "success")] * 4 + [("push", "near_success")] * 2 + [("push", "failure")] * 2
    folder = _save(tmp_path, make_episode, [*kinds, ("stack", "success"), ("stack", "failure")])
    data = open_data(WorldModelTraining(), {}, folder)
    weights = data.weights(WorldModelTraining())
    tasks, outcomes = data.cache.tasks, data.cache.outcomes

    def share(task: str, outcome: str) -> float:
        return sum(
            w for w, t, o in zip(weights.tolist(), tasks, outcomes, strict=True) if (t, o) == (task, outcome)
        )  # fmt: skip

    assert share("push", "success") == pytest.approx(0.2)
    assert share("push", "near_success") == pytest.approx(0.2)
    assert share("push", "failure") == pytest.approx(0.1)
    assert share("stack", "success") == pytest.approx(2 * share("stack", "failure"))
    assert len(set(data.weights(WorldModelTraining(balanced=False)).tolist())) == 1


def test_the_only_one_of_its_kind_is_not_learned_by_heart(tmp_path: Path, make_episode: MakeEpisode) -> None:
    folder = _save(tmp_path, make_episode, [("push", "success")] * 19 + [("push", "near_success")])
    settings = WorldModelTraining(mirror=False)
    weights = open_data(settings, {}, folder).weights(settings)
    assert float(weights.sum()) == pytest.approx(1.0)
    assert float(weights[-1] / weights[0]) < 12  # and not 19: it is drawn five times as often as on average at most
    assert float(weights[-1] / weights[0]) > 2


def test_the_mirror_can_be_left_out(tmp_path: Path, make_episode: MakeEpisode) -> None:
    folder = _save(tmp_path, make_episode, [("push", "success"), ("push", "failure")])
    with_mirror = open_data(WorldModelTraining(), {}, folder)
    assert len(with_mirror.own) == 2
    assert len(with_mirror.cache) == 2 + int((with_mirror.own.calibrated > 0).sum()) == 4
    assert len(open_data(WorldModelTraining(mirror=False), {}, folder).cache) == 2
    assert len(open_data(WorldModelTraining(), {"rig": ""}, folder).cache) == 2  # no cameras are known of


def test_of_motions_only_the_steps_are_looked_at(tmp_path: Path, make_episode: MakeEpisode) -> None:
    (tmp_path / "data").mkdir()
    folder = _save(tmp_path / "data", make_episode, [("push", "success"), ("push", "failure")])
    few = make_episode(seed=7, outcome="near_success", steps=20)
    images = {camera: stack[:1] for camera, stack in few.images.items()}
    motion = replace(few, images=images, image_stride=1000, source="expert/tabletop")
    (tmp_path / "motions").mkdir()
    motion.save(tmp_path / "motions" / "0.safetensors")
    with pytest.raises(ConfigError, match="says where its things were"):
        open_data(WorldModelTraining(), {}, folder, motions=tmp_path / "motions")
    told = [[[0.5, 0.0, 0.025, 0.0, 0.03]]] * len(few)
    replace(motion, extra={"objects": told}).save(tmp_path / "motions" / "0.safetensors")
    data = open_data(WorldModelTraining(), {}, folder, motions=tmp_path / "motions")
    assert len(data.own) == 2
    assert data.motions.outcomes == ["success", "failure", "near_success"]
    step = int(data.motions.step_start[-1])
    assert data.motions.actions[step : step + len(few) - 1].tolist() == pytest.approx(few.action, abs=1e-6)
