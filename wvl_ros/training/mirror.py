"""Episodes seen in a mirror: twice as many to learn from, where the rig is its own mirror image.

A rig with two exterior cameras on either side of the arm looks the same when left and right change places: exterior 1
sees what exterior 2 saw, each picture flipped, and all that moved to the left moves to the right. (The light is not
mirrored; what it does is seen in the first frame.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from wvl_ros.training import things
from wvl_ros.training.frame_cache import FrameCache, StackedFrames, join
from wvl_ros.world_model import patches
from wvl_ros.world_model.kinematics import ACROSS, MIRRORED_HAND, Kinematics, mirrored_actions

_TOLERANCE = 1e-3  # m, and of the entries of a rotation


class MirroredFrames:
    """Frames (F, G, G, C) as a mirror shows them: flipped, and the two exterior views in each other's place."""

    def __init__(self, frames: NDArray[np.uint8] | StackedFrames, patch: int) -> None:
        self._frames, self._patch = frames, patch
        self.shape: tuple[int, ...] = tuple(frames.shape)

    def __getitem__(self, rows: NDArray[np.int64] | slice) -> NDArray[np.uint8]:
        frames = self._frames[rows]
        n, grid = frames.shape[:2]
        split = frames.reshape(n, grid, grid, patches.VIEWS, 3, self._patch, self._patch)
        return split[:, :, ::-1, [1, 0, 2], ..., ::-1].reshape(frames.shape)


def is_symmetric(cameras: Sequence[Mapping[str, Any] | None]) -> bool:
    """Whether a rig is its own mirror image: two fixed cameras on either side, and one in the middle of the hand.

    Args:
        cameras: three calibrations or None each, as `CameraGeometry` takes them.
    """
    if len(cameras) != patches.VIEWS or any(camera is None for camera in cameras):
        return False
    flipped = torch.diag(torch.tensor([-1.0, 1.0, 1.0]))  # the camera's right becomes its left
    for own, other, plane in ((0, 1, ACROSS), (1, 0, ACROSS), (2, 2, MIRRORED_HAND)):
        a, b = cameras[own], cameras[other]
        assert a is not None
        assert b is not None
        position, rotation = (torch.as_tensor(a[name], dtype=torch.float32) for name in ("position", "rotation"))
        seen, turned = (torch.as_tensor(b[name], dtype=torch.float32) for name in ("position", "rotation"))
        gap = max(
            float((plane @ position - seen).abs().max()),
            float((plane @ rotation @ flipped - turned).abs().max()),
            abs(float(a["fovy_deg"]) - float(b["fovy_deg"])),
        )
        if gap > _TOLERANCE:
            return False
    return True


def with_mirror_images(cache: FrameCache, patch: int) -> FrameCache:
    """The episodes of a cache, and behind them those of the calibrated rig once more, in the mirror.

    These have `calibrated` -1. `patch` in pixels, as the frames have it.
    """
    own = cache.select([i for i, known in enumerate(cache.calibrated.tolist()) if known > 0])
    if not len(own):
        return cache
    everywhere = torch.ones(len(own.kinematics), dtype=torch.bool)
    image = replace(
        own,
        frames=MirroredFrames(own.frames, patch),  # type: ignore[arg-type]
        kinematics=Kinematics.unpack(own.kinematics).mirrored(everywhere).pack(),
        actions=mirrored_actions(own.actions, everywhere),
        things=things.mirrored(own.things),
        calibrated=-own.calibrated,
        fingerprint=f"mirrored {own.fingerprint}",
    )
    return join(cache, image)
