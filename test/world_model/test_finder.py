"""Things are found in frames: how many, where, and by calibrated cameras only."""

from __future__ import annotations

import pytest
import torch

from wvl_ros.checkpoints import find
from wvl_ros.training.finder_fit import finding_loss
from wvl_ros.training.world_model_settings import rig_facts
from wvl_ros.world_model import composition, patches
from wvl_ros.world_model.finder import CELL, STRIDE, ThingFinder, Told
from wvl_ros.world_model.geometry import CameraGeometry
from wvl_ros.world_model.loading import load_world_model
from wvl_ros.world_model.rollout import first_kinematics
from wvl_ros.world_model.things import MOST, Things
from wvl_ros.worlds import droid
from wvl_ros.worlds.tabletop import TabletopWorld


@pytest.mark.parametrize(("task", "kind"), [("push", "blocks"), ("stack", "blocks"), ("sweep", "balls")])
def test_the_shipped_one_finds_what_stands_on_the_tabletop(task: str, kind: str) -> None:
    model = load_world_model(find("world_model", "small"))
    world = TabletopWorld(task)
    gaps, more = [], 0
    for seed in range(3_900_000, 3_900_005):
        observation, info = world.reset(seed=seed)
        true = torch.from_numpy(world.object_poses()).float()
        views = [patches.resize(observation[camera][None], 64, 64) for camera in droid.CAMERAS]
        frame = patches.to_tensor(patches.to_patches(torch.tensor(views).permute(1, 0, 2, 3, 4).numpy(), 4))
        pose = torch.from_numpy(observation["cartesian_position"])[None]
        k = first_kinematics(pose, torch.zeros(1, 1), torch.from_numpy(info["commanded_pose"])[None])
        for calibrated in (1.0, 0.0):
            packed = model.find(composition.Picture.of(frame, 4), k, torch.full((1,), calibrated))
            things = Things.unpack(packed)
            if not calibrated:
                assert not things.there.any()
                continue
            found = things.place[0][things.there[0] > 0]
            gaps.append(torch.cdist(true[:, :3], found).amin(1))
            more += len(found) - len(true)
    gap = torch.cat(gaps)
    assert float((gap < 0.01).float().mean()) >= (1.0 if kind == "blocks" else 0.9)
    assert float(gap.median()) < 0.002
    assert abs(more) <= (0 if kind == "blocks" else 3)


def test_what_is_told_right_costs_nothing_and_is_read_back() -> None:
    finder = ThingFinder(CameraGeometry(rig_facts("tabletop")["cameras"], 16, 64))
    place, there = torch.zeros(1, MOST, 3), torch.zeros(1, MOST)
    place[0, :2] = torch.tensor([[0.48, 0.11, 0.02], [0.55, -0.062, 0.05]])
    there[0, :2] = 1
    true = Things.at_rest(place, torch.full((1, MOST), 0.2), torch.full((1, MOST), 0.025), there)
    gap = (finder.places[None] - place[0, :2, None, None, :2]).norm(dim=3)
    nearest = gap.argmin(0)
    each = place[0, :2][nearest]
    size = CELL * STRIDE
    like = torch.cat([(each[..., :2] - finder.places) / size, (each[..., 2:] - 0.02) / 0.03], 2)
    like = torch.cat(
        [
            like,
            torch.full((*like.shape[:2], 1), 0.5),
            *(f(torch.full((*like.shape[:2], 1), 0.8)) for f in (torch.cos, torch.sin)),
        ],
        2,
    )
    inside = ((finder.places[None] - place[0, :2, None, None, :2]).abs() <= size / 2).all(3).any(0)
    told = Told(torch.where(inside, 20.0, -20.0)[None], like[None])
    assert float(finding_loss(finder, told, true)) < 1e-3
    wrong = told._replace(like=told.like + 0.5)
    assert float(finding_loss(finder, wrong, true)) > 0.5
    finder.forward = lambda seen: told  # type: ignore[method-assign]
    finder.look = lambda images, k: images  # type: ignore[method-assign]
    found = finder.find(torch.zeros(1), None)  # type: ignore[arg-type]
    order = found.place[0, :2, 0].argsort()
    assert int(found.there.sum()) == 2
    assert torch.allclose(found.place[0, :2][order], place[0, :2], atol=1e-4)
    assert found.yaw[0, :2].tolist() == pytest.approx([0.2, 0.2], abs=1e-4)
    assert found.half[0, :2].tolist() == pytest.approx([0.025, 0.025], abs=1e-5)
