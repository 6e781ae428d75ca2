"""The visual judge as a judge: it looks at the last frames, and is asked for by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from wvl_ros.checkpoints import find
from wvl_ros.errors import CheckpointError, EpisodeError
from wvl_ros.rewards.registry import make_judge
from wvl_ros.sans.collect import collect_episode
from wvl_ros.sans.episode import Episode
from wvl_ros.worlds.experts import Skill
from wvl_ros.worlds.tabletop import TabletopWorld


def test_it_tells_a_success_from_an_episode_that_has_not_begun() -> None:
    world = TabletopWorld("pick_place", 64, 64, image_stride=3)
    judge = make_judge("visual")
    successes = [collect_episode(world, "pick_place", seed, Skill(), 60) for seed in (940_000, 940_001, 940_002)]
    assert all(episode.success for episode in successes)
    early = [collect_episode(world, "pick_place", seed, Skill(), 9) for seed in (940_000, 940_001, 940_002)]
    done, begun = judge.probability(successes), judge.probability(early)
    assert done.mean() > 0.7 > judge.threshold > 0.3 > begun.mean()
    np.testing.assert_allclose(judge.probability(successes[1:2]), done[1:2], atol=1e-6)


def test_bad_input_is_named(make_episode: Callable[..., Episode], tmp_path: Path) -> None:
    with pytest.raises(EpisodeError, match="too short to judge"):
        make_judge("visual").probability([make_episode(steps=2)])
    shipped = find("world_model", "small")
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        (tmp_path / name).write_bytes((shipped / name).read_bytes())
    with pytest.raises(CheckpointError, match="wvl train visual-judge"):
        make_judge("visual", str(tmp_path))
    assert make_judge("visual", threshold=0.9).threshold == 0.9
