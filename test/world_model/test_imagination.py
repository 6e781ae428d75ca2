"""The small model behind the interface of every world model: the same frames as by its own rollouts."""

from __future__ import annotations

import numpy as np
import torch

from wvl_ros.world_model import patches
from wvl_ros.world_model.imagination import imagination
from wvl_ros.world_model.model import WorldModel
from wvl_ros.world_model.rollout import Rollouts, first_kinematics


def test_the_small_model_draws_what_its_rollouts_draw() -> None:
    torch.manual_seed(0)
    # Fresh weights say about 0.5: that is no success here.
    model = WorldModel(channels=16, condition_dim=32, vocabulary=["red"], success_threshold=0.9).eval()
    views = torch.randint(0, 255, (2, 3, 64, 64, 3), dtype=torch.uint8)
    pose = torch.tensor([[0.5, 0.0, 0.4, 3.1, 0.0, 0.0]]).repeat(2, 1)
    command = torch.cat([pose, torch.zeros(2, 1)], 1)
    kinematics, rest = first_kinematics(pose, command[:, 6:], command), (["red"] * 2, torch.zeros(2), [1, 2])
    command[:, 0] += 0.03

    own = Rollouts(model)
    own.start(patches.to_tensor(patches.to_patches(views.numpy(), 4)), kinematics, *rest)
    shared = imagination(model)
    shared.start(views, kinematics, *rest)
    shared.stop(torch.tensor([False, True]))
    own.stop(torch.tensor([False, True]))
    frame = own.advance(command[:, None].repeat(1, 3, 1))
    for _ in range(3):
        assert not shared.frame_due
        shared.move(command)
    drawn = shared.imagine()
    expected = patches.from_patches(patches.to_uint8(frame.frame), 4)
    assert np.array_equal(drawn.views[:, 0].numpy(), expected)
    assert torch.equal(drawn.success_probability[:, 0], frame.success_probability)
    assert torch.equal(drawn.kinematics, frame.kinematics)
    assert drawn.valid.tolist() == [[True], [False]]
    assert shared.active.tolist() == [True, False]
