"""What the imagined gripper closes on, against the truth: a grasp that never was is how imagination flatters most."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from wvl_ros.evaluation.imagined import ImaginedEpisode
from wvl_ros.evaluation.wilson import wilson_interval
from wvl_ros.training.frame_cache import FrameCache
from wvl_ros.world_model.kinematics import GRIPPER

_OPEN, _NOTHING = 0.3, 0.9  # positions below which a gripper is open, and above which it holds nothing (1 is closed)
_STOPPED = 0.02  # of its way in a frame


def closing_measures(
    cache: FrameCache, episodes: NDArray[np.int64], imagined: Sequence[ImaginedEpisode]
) -> dict[str, Any]:
    """Of each closing of an open gripper, once the true one has stopped: whether both hold something.

    Returns:
        `on_nothing` and `on_something`: counts of the truth. `nothing_told_as_held` and `held_told_as_nothing`: shares
        of these that are imagined the other way, None without any; with `_interval_95`.
    """
    true, mine = [], []
    for episode, own in zip(episodes.tolist(), imagined, strict=True):
        index = torch.arange(len(own.frames) + 1)
        positions = cache.kinematics[cache.step(torch.full_like(index, episode), index), GRIPPER]
        closed = cache.chunk(torch.full_like(index[:-1], episode), index[:-1])[:, -1, 6] > 0.5
        for frame in _stops(positions.numpy(), closed.numpy()):
            true.append(float(positions[frame]))
            mine.append(float(own.kinematics[frame - 1, GRIPPER]))
    nothing, told = np.array(true) > _NOTHING, np.array(mine) > _NOTHING
    result: dict[str, Any] = {"on_nothing": int(nothing.sum()), "on_something": int((~nothing).sum())}
    for name, rows in (("nothing_told_as_held", nothing), ("held_told_as_nothing", ~nothing)):
        wrong, n = int((told != nothing)[rows].sum()), int(rows.sum())
        result[name] = round(wrong / n, 4) if n else None
        result[f"{name}_interval_95"] = [round(x, 4) for x in wilson_interval(wrong, n)]
    return result


def _stops(positions: NDArray[np.float32], closed: NDArray[np.bool_]) -> Iterator[int]:
    """Frames at which a gripper that was open, and is told to close since, has stopped.

    Args:
        positions: (T + 1,) of the frames. closed: (T,) whether it is told to be closed on the way to the next one.
    """
    closing = False
    for frame, told in enumerate(closed):
        before, after = positions[frame], positions[frame + 1]
        closing = bool(told) and (closing or before < _OPEN)
        if closing and after > _OPEN and after - before < _STOPPED:
            yield frame + 1
            closing = False
