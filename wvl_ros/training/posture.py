"""Fits where elbow and wrist are for a pose of the flange, on the joints of recorded episodes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from wvl_ros.sans.episode import Episode
from wvl_ros.world_model.kinematics import Kinematics
from wvl_ros.world_model.posture import Posture
from wvl_ros.worlds.kinematics import link_positions

_EVERY = 4  # steps of an episode that are looked at


def posture_samples(episodes: Sequence[Episode]) -> tuple[Tensor, Tensor]:
    """Packed kinematics (N, 39) and positions (N, 2, 3) m of elbow and wrist, of some steps of episodes."""
    kinematics, links = [], []
    for episode in episodes:
        poses = torch.from_numpy(np.ascontiguousarray(episode.cartesian_position[::_EVERY])).float()
        grippers = torch.from_numpy(np.ascontiguousarray(episode.gripper_position[::_EVERY])).float()
        kinematics.append(Kinematics.at_rest(poses, grippers, torch.cat([poses, grippers], 1)).pack())
        links += [link_positions(joints) for joints in episode.joint_position[::_EVERY]]
    return torch.cat(kinematics), torch.from_numpy(np.stack(links)).float()


def fit_posture(
    posture: Posture, kinematics: Tensor, links: Tensor, generator: torch.Generator, steps: int = 1500
) -> dict[str, float]:
    """Fits a posture to `posture_samples`; the median errors in mm on a held-out seventh."""
    target = links.flatten(1)
    k = Kinematics.unpack(kinematics)
    x = torch.cat([k.position, k.rotation[:, :, 0], k.rotation[:, :, 2]], 1)
    held = torch.arange(len(x)) > len(x) * 6 // 7
    posture.get_buffer("input_mean").copy_(x[~held].mean(0))
    posture.get_buffer("input_scale").copy_(x[~held].std(0) + 1e-3)
    posture.get_buffer("mean").copy_(target[~held].mean(0))
    posture.get_buffer("scale").copy_(target[~held].std(0) + 1e-4)
    rows = (~held).nonzero()[:, 0]
    optimizer = torch.optim.Adam(posture.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        chosen = rows[torch.randint(len(rows), (256,), generator=generator)]
        error = (posture(Kinematics.unpack(kinematics[chosen])).flatten(1) - target[chosen]) / posture.get_buffer(
            "scale"
        )
        optimizer.zero_grad()
        (error * error).mean().backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        gap = (posture(Kinematics.unpack(kinematics[held])) - links[held]).norm(dim=2) * 1000
    return {"elbow_mm": round(float(gap[:, 0].median()), 2), "wrist_mm": round(float(gap[:, 1].median()), 2)}
