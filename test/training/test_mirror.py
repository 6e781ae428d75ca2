"""Mirror images of episodes: twice the data, and each is what the rig would have recorded on its other side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pytest
import torch

from wvl_ros.sans.episode import Episode
from wvl_ros.training.frame_cache import open_cache
from wvl_ros.training.mirror import is_symmetric, with_mirror_images
from wvl_ros.training.world_model_settings import rig_facts
from wvl_ros.world_model import patches
from wvl_ros.world_model.geometry import CameraGeometry
from wvl_ros.world_model.kinematics import Kinematics
from wvl_ros.worlds.tabletop import TabletopWorld

SHAPE: dict[str, Any] = {"size": 64, "patch": 4, "actions_per_frame": 3, "rig": "tabletop"}


@pytest.fixture
def cameras() -> list[dict[str, Any]]:
    return [dict(camera) for camera in rig_facts("tabletop")["cameras"]]


def test_the_tabletop_is_its_own_mirror_image(cameras: list[dict[str, Any]]) -> None:
    assert is_symmetric(cameras)
    assert not is_symmetric([cameras[1], cameras[0], cameras[2] | {"position": [0.07, 0.02, 0.01]}])
    assert not is_symmetric([cameras[0], cameras[0], cameras[2]])
    assert not is_symmetric([None, None, None])
    assert not is_symmetric([cameras[0] | {"fovy_deg": 40.0}, cameras[1], cameras[2]])


def test_an_episode_is_there_twice(tmp_path: Path, make_episode: Callable[..., Episode]) -> None:
    own = replace(make_episode(seed=0, outcome="success"), source="expert/tabletop")
    foreign = replace(make_episode(seed=1, outcome="failure"), source="teleop/droid")
    own.save(tmp_path / "0.safetensors")
    foreign.save(tmp_path / "1.safetensors")
    cache = open_cache(tmp_path, **SHAPE)
    both = with_mirror_images(cache, 4)
    known = cache.calibrated.tolist()
    assert len(both) == len(cache) + known.count(1.0)
    assert both.calibrated.tolist() == known + [-1.0] * known.count(1.0)
    first, image = torch.tensor([0]), torch.tensor([len(cache)])
    index = torch.tensor([2])
    true, shown = (
        patches.from_patches(patches.to_uint8(both.frame(episode, index)), 4)[0] for episode in (first, image)
    )
    assert np.array_equal(shown, true[[1, 0, 2], :, ::-1])
    assert both.outcomes[0] == both.outcomes[-1]


def test_cameras_see_the_mirrored_gripper_where_the_mirrored_picture_shows_it(cameras: list[dict[str, Any]]) -> None:
    geometry = CameraGeometry(list(cameras), 16, 64)
    pose = torch.tensor([[0.5, 0.12, 0.3, 3.0, 0.1, 0.4], [0.45, -0.1, 0.25, -3.1, 0.0, -0.2]])
    k = Kinematics.at_rest(pose, torch.full((2, 1), 0.3), torch.cat([pose, torch.zeros(2, 1)], 1))
    maps, shown = geometry.maps(k), geometry.maps(k.mirrored(torch.ones(2, dtype=torch.bool)))
    swapped = maps[:, [1, 0], :].flip(-1)[:, :, [0, 2, 1, 3]]  # and the fingers change places
    assert torch.allclose(shown[:, :2], swapped, atol=1e-4)
    reach, shown = (geometry.reach(arm) for arm in (k, k.mirrored(torch.ones(2, dtype=torch.bool))))
    swapped = reach[:, [1, 0, 2]].flip(-1)
    assert torch.allclose(shown[:, :, 2:], swapped[:, :, 2:], atol=1e-4)
    assert torch.allclose(shown[:, :, :2].abs(), swapped[:, :, :2].abs(), atol=1e-3)  # its fingers are alike


def test_the_simulator_agrees_with_the_mirror() -> None:
    # The same block and disk on either side of the table, seen by the camera on that side.
    world = TabletopWorld("push", 64, 64)
    world.reset(seed=3, options={"variant": "single"})
    model, data = world._model, world._data
    joint = int(model.jnt_qposadr[model.body("object_0").jntadr[0]])
    data.qpos[:7] = (0.0, -0.785, 0.0, -2.356, 0.0, 1.571, 0.785)  # the arm in its own plane
    pictures = []
    for side in (1.0, -1.0):
        data.qpos[joint : joint + 7] = (0.5, 0.08 * side, 0.025, 1, 0, 0, 0)
        data.mocap_pos[int(model.body("goal_0").mocapid[0])][:2] = (0.55, -0.12 * side)
        mujoco.mj_forward(model, data)
        pictures.append([image.astype(int) for image in world.render_cameras().values()])
    for seen, other in ((0, 1), (1, 0), (2, 2)):
        true, shown = pictures[0][seen], pictures[1][other]
        gap, unlike = (np.abs(true - picture).max(2) > 50 for picture in (shown[:, ::-1], shown))
        assert gap.mean() < 0.01  # edges; the light comes from one side, so faces differ a little
        assert unlike.mean() > 0.015
