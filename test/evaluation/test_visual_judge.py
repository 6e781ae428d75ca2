"""The judge of videos: learns success states from true frames, is the same for a seed, survives its file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from wvl_ros.evaluation.visual_judge import FILE, VisualJudge, fit_judge, judge_videos, load_judge, save_judge
from wvl_ros.sans.episode import Episode
from wvl_ros.training.frame_cache import open_cache

WORDS = ["put", "the", "red", "cube", "on", "green", "disk"]
PATCH = 4


def test_it_learns_what_success_looks_like_and_judges_any_video(
    tmp_path: Path, make_episode: Callable[..., Episode]
) -> None:
    for seed in range(6):
        outcome = "success" if seed % 2 else "near_success"
        episode = make_episode(steps=28, seed=seed, outcome=outcome)
        images = {name: stack.copy() for name, stack in episode.images.items()}
        if outcome == "success":
            for stack in images.values():
                stack[-3:, 16:48, 16:48] = 255  # what success looks like
        replace(episode, images=images).save(tmp_path / "data" / f"{seed}.safetensors")
    cache = open_cache(tmp_path / "data", size=64, patch=PATCH, actions_per_frame=3, rig="tabletop")
    judge = fit_judge(cache, WORDS, PATCH, steps=25, batch=12, members=1)
    episodes = np.arange(len(cache))
    chances = judge_videos(judge, cache, episodes, PATCH, None)
    truth = np.array(cache.outcomes) == "success"
    assert chances[truth].min() > chances[~truth].max()
    swapped = [cache.frames[cache.frame_start[e] + 1 : cache.frame_start[e] + cache.frame_count[e]] for e in (1, 0)]
    other = judge_videos(judge, cache, episodes[:2], PATCH, swapped)
    assert (other > other[::-1]).tolist() == (chances[:2] < chances[:2][::-1]).tolist()  # it looks at the video given
    assert np.array_equal(
        judge_videos(fit_judge(cache, WORDS, PATCH, steps=25, batch=12, members=1), cache, episodes, PATCH, None),
        chances,
    )
    save_judge(tmp_path, judge)
    loaded = load_judge(tmp_path)
    assert loaded is not None
    assert judge_videos(loaded, cache, episodes, PATCH, None) == pytest.approx(chances, abs=0.02)  # kept in bfloat16
    assert load_judge(tmp_path / "data") is None
    save_judge(tmp_path, VisualJudge(WORDS))
    assert (tmp_path / FILE).stat().st_size < 3e6
