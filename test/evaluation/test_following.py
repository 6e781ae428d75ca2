"""Pairs of episodes from one start, and what a video is worth that follows its actions, or another's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from wvl_ros.evaluation.following import collect_pairs, pair_measures
from wvl_ros.evaluation.imagined import ImaginedEpisode
from wvl_ros.sans.episode import Episode
from wvl_ros.training.frame_cache import FrameCache, open_cache

SEED = 950_000


def _as_imagined(cache: FrameCache, episode: int) -> ImaginedEpisode:
    start, count = int(cache.frame_start[episode]), int(cache.frame_count[episode])
    step = cache.step(torch.full((count - 1,), episode), torch.arange(1, count))
    rewards = cache.rewards[step].numpy().astype(float)
    return ImaginedEpisode(cache.frames[start + 1 : start + count], rewards, cache.kinematics[step])


def test_the_true_video_follows_its_actions_and_the_others_does_not(tmp_path: Path) -> None:
    collect_pairs(tmp_path, SEED, 1, tasks=["push"], size=64)
    files = sorted(tmp_path.glob("*.safetensors"))
    a, b, walk = (Episode.load(path) for path in files)
    assert all(np.array_equal(a.images[camera][0], b.images[camera][0]) for camera in a.images)
    assert (a.outcome, b.outcome == "success", walk.extra["mode"]) == ("success", False, "wander")
    cache = open_cache(tmp_path, size=64, patch=4, actions_per_frame=3, rig="tabletop")
    true = [_as_imagined(cache, episode) for episode in range(3)]
    result = pair_measures(cache, [(0, 1)], true, 1)
    assert (result["own_nearer"], result["own_nearer_at_end"], result["ranked_right"]) == (1.0, 1.0, 1.0)
    assert result["psnr_own"] == 100 > result["psnr_other"]
    swapped = pair_measures(cache, [(0, 1)], [true[1], true[0], true[2]], 1)
    assert (swapped["own_nearer"], swapped["ranked_right"]) == (0.0, 0.0)
