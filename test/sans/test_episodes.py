"""What is known of episodes before they are read: from a file's header alone, and never from a damaged file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import safe_open

from wvl_ros.errors import EpisodeError
from wvl_ros.sans.episode import Episode
from wvl_ros.sans.episodes import list_episodes

Make = Callable[..., Episode]


def test_the_header_says_what_the_file_holds(make_episode: Make, tmp_path: Path) -> None:
    episode = make_episode(steps=22, outcome="near_success", source="policy/tabletop")
    episode.save(tmp_path / "a.safetensors")
    entry = list_episodes(tmp_path)[0]
    with safe_open(tmp_path / "a.safetensors", framework="numpy") as file:
        assert entry.length == len(file.get_tensor("joint_position")) == 22
    assert set(entry.cameras) == set(episode.images)
    assert (entry.outcome, entry.source, entry.image_stride) == ("near_success", "policy/tabletop", 3)
    assert (entry.task, entry.instruction, entry.episode_id) == ("pick_place", episode.instruction, "synthetic_0")
    assert len(entry.load()) == 22


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data + b"x",
        lambda data: data[:6],
        lambda data: b"\xff" * 8 + data[8:],
        lambda data: data[:8] + b"[" + data[9:],
        lambda data: data.replace(b"joint_position", b"joint_positron"),
        lambda data: b"",
    ],
)
def test_a_damaged_file_is_named(damage: Callable[[bytes], bytes], make_episode: Make, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    make_episode().save(path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(EpisodeError, match=r"a\.safetensors' cannot be read as an episode"):
        list_episodes(tmp_path)
