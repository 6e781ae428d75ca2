"""The shipped small world model imagines a tabletop episode that it has never seen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from wvl_ros.checkpoints import find
from wvl_ros.evaluation.arm import arm_measures
from wvl_ros.evaluation.images import image_measures
from wvl_ros.evaluation.imagined import ImaginedEpisode, imagine_episodes
from wvl_ros.evaluation.outcome import best_run
from wvl_ros.training.frame_cache import FrameCache, open_cache
from wvl_ros.training.misnaming import Misnaming
from wvl_ros.world_model.loading import load_world_model
from wvl_ros.world_model.model import WorldModel
from wvl_ros.world_model.rollout import Rollouts
from wvl_ros.world_model.things import Things

SEED = 1_500_000  # used for nothing else


@pytest.fixture(scope="module")
def model() -> WorldModel:
    return load_world_model(find("world_model", "small"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> FrameCache:
    from wvl_ros.sans.collect import collect_episode
    from wvl_ros.worlds.experts import Skill
    from wvl_ros.worlds.tabletop import TabletopWorld

    folder = tmp_path_factory.mktemp("episodes")
    world = TabletopWorld("pick_place", image_stride=3)
    for i, task in enumerate(("pick_place", "push", "stack")):
        collect_episode(world, task, SEED + i, Skill(), 45, "good").save(folder / f"{task}.safetensors")
    world.close()
    return open_cache(folder, size=64, patch=4, actions_per_frame=3, rig="tabletop")


@pytest.fixture(scope="module")
def imagined(model: WorldModel, cache: FrameCache) -> list[ImaginedEpisode]:
    return imagine_episodes(model, cache, np.arange(len(cache)))


def test_it_is_small_enough_to_ship() -> None:
    folder: Path = find("world_model", "small")
    assert sum(path.stat().st_size for path in folder.iterdir()) < 13e6


def test_the_imagined_arm_follows_the_commands(
    model: WorldModel, cache: FrameCache, imagined: list[ImaginedEpisode]
) -> None:
    arm = arm_measures(cache, np.arange(len(cache)), imagined, model)
    assert arm["tcp_mm"]["median"] < 5
    assert arm["drawn_px"]["median"] <= 2


def test_the_imagined_views_look_like_the_true_ones(
    model: WorldModel, cache: FrameCache, imagined: list[ImaginedEpisode]
) -> None:
    images = image_measures(cache, np.arange(len(cache)), imagined, model)
    assert images["psnr"] > 22
    assert images["exterior_image_1_left"]["psnr_at_0.2s"] > 30
    # To the end, each rollout is nearer to its own truth than to the other episodes'.
    ends = [cache.frames[int(s + n) - 1] for s, n in zip(cache.frame_start, cache.frame_count, strict=True)]
    for i, own in enumerate(imagined):
        gaps = [np.square(own.frames[-1].astype(float) - end).mean() for end in ends]
        assert int(np.argmin(gaps)) == i


def test_what_is_carried_and_pushed_ends_where_it_truly_did(model: WorldModel, cache: FrameCache) -> None:
    episodes = torch.arange(len(cache))
    start, ends = torch.zeros_like(episodes), cache.frame_count - 1
    rollouts = Rollouts(model, stop_at_success=False)
    kinematics = cache.kinematics[cache.step(episodes, start)]
    rollouts.start(cache.frame(episodes, start), kinematics, cache.instructions, cache.calibrated, [0] * len(cache))
    first = Things.unpack(rollouts.things)
    for t in range(int(ends.max())):
        rollouts.advance(cache.chunk(episodes, torch.minimum(start + t, ends - 1)))
    last = Things.unpack(rollouts.things)
    for e in episodes.tolist():
        true = [
            Things.unpack(cache.things_at(episodes[e : e + 1], cache.step(episodes[e], at)[None]))
            for at in (0, ends[e])
        ]
        moved = int((true[1].place - true[0].place)[0].norm(dim=1).argmax())
        found = int((first.place[e] - true[0].place[0, moved]).norm(dim=1).add(9 * (1 - first.there[e])).argmin())
        assert float((first.place[e, found] - true[0].place[0, moved]).norm()) < 0.01
        assert float((true[1].place - true[0].place)[0, moved].norm()) > 0.05
        assert float((last.place[e, found] - true[1].place[0, moved]).norm()) < 0.03


def test_a_success_is_none_by_another_name(
    model: WorldModel, cache: FrameCache, imagined: list[ImaginedEpisode]
) -> None:
    def told(rollouts: list[ImaginedEpisode]) -> list[bool]:
        frames, threshold = int(model.config["success_frames"]), float(model.config["success_threshold"])
        return [best_run(own.success_probability, frames) > threshold for own in rollouts]

    assert any(told(imagined))
    generator = torch.Generator().manual_seed(0)
    names = tuple(Misnaming().one(text, generator) for text in cache.instructions)
    assert all(name != text for name, text in zip(names, cache.instructions, strict=True))
    assert not any(told(imagine_episodes(model, replace(cache, instructions=names), np.arange(len(cache)))))
