"""Held-out episodes from seeds: balanced, the same again, kept."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from wvl_ros.checkpoints import find
from wvl_ros.errors import ConfigError
from wvl_ros.evaluation.held_out import collect_held_out
from wvl_ros.sans.episode import Episode

SEED = 950_000


def test_successes_and_near_successes_by_policy_and_expert_the_same_again(tmp_path: Path) -> None:
    policy = find("policy", "small")
    for name in ("a", "b"):
        collect_held_out(tmp_path / name, SEED, 4, policy, tasks=["push"], size=64, workers=1 if name == "a" else 2)
    files = sorted(path.name for path in (tmp_path / "a").glob("*.safetensors"))
    assert files == sorted(path.name for path in (tmp_path / "b").glob("*.safetensors"))
    episodes = [Episode.load(tmp_path / "a" / name) for name in files]
    assert Counter(episode.outcome for episode in episodes) == {"success": 2, "near_success": 2}
    assert Counter(episode.source for episode in episodes) == {"policy/tabletop": 2, "expert/tabletop": 2}
    assert all(int(str(episode.extra["seed"])) >= SEED for episode in episodes)
    before = [path.stat().st_mtime_ns for path in sorted((tmp_path / "a").iterdir())]
    collect_held_out(tmp_path / "a", SEED, 4, policy, tasks=["push"], size=64)
    assert [path.stat().st_mtime_ns for path in sorted((tmp_path / "a").iterdir())] == before
    with pytest.raises(ConfigError, match="other seeds or another number"):
        collect_held_out(tmp_path / "a", SEED + 1, 4, policy, tasks=["push"], size=64)
