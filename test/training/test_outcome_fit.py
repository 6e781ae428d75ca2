"""An outcome network learns from true frames what success looks like, and that it matters what is named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from wvl_ros.sans.episode import Episode
from wvl_ros.training.frame_cache import FrameCache, open_cache
from wvl_ros.training.misnaming import Misnaming
from wvl_ros.training.outcome_fit import FramePools, fit_outcome
from wvl_ros.world_model.instruction import collect_vocabulary
from wvl_ros.world_model.outcome import OutcomeNetwork

PAINT = {"red": (255, 0, 0), "blue": (0, 0, 255)}


@pytest.fixture
def cache(tmp_path: Path, make_episode: Callable[..., Episode]) -> FrameCache:
    """Episodes in which something turns red or blue, as they are told to, and others in which nothing does."""
    for seed in range(8):
        color = ("red", "blue")[seed % 2]
        outcome = "success" if seed < 6 else "near_success"
        episode = make_episode(steps=28, seed=seed, outcome=outcome)
        images = {name: stack.copy() for name, stack in episode.images.items()}
        if outcome == "success":
            for stack in images.values():
                stack[-3:, 8:56, 8:56] = PAINT[color]
        told = replace(episode, images=images, instruction=f"make it {color}")
        told.save(tmp_path / f"{seed}.safetensors")
    return open_cache(tmp_path, size=32, patch=4, actions_per_frame=3, rig="tabletop")


def test_it_learns_what_is_named(cache: FrameCache) -> None:
    torch.manual_seed(0)
    network = OutcomeNetwork(collect_vocabulary(cache.instructions), 48, 8, 16)
    found = fit_outcome(network, cache, 4, 150, torch.Generator().manual_seed(0), batch=24)
    assert found["misnamed"] < 0.2
    pools = FramePools(cache)
    rows = pools.success.nonzero()[:, 0]
    assert len(rows)
    episode, index = pools.episode[rows], pools.index[rows]
    first, now = cache.frame(episode, torch.zeros_like(index)), cache.frame(episode, index)
    own = [cache.instructions[i] for i in episode.tolist()]
    other = [Misnaming().all(text)[0] for text in own]
    with torch.no_grad():
        named, misnamed = (torch.sigmoid(network(first, now, network.instruction.tokens(t))) for t in (own, other))
    assert named.min() > 0.6
    assert misnamed.max() < 0.4


def test_frames_are_drawn_by_kind_and_none_without_a_label(cache: FrameCache) -> None:
    cache = replace(cache, outcomes=["unknown", *cache.outcomes[1:]])
    pools = FramePools(cache)
    assert 0 not in pools.episode
    assert int(pools.index.min()) == 1  # a first frame is what is compared with
    drawn = pools.draw(40, torch.Generator().manual_seed(0))
    assert len(drawn) == 40
    assert 0.25 <= float(pools.success[drawn].float().mean()) <= 0.75
