"""Practice in the tabletop: the same rollouts as an evaluation of the policy sees, with what an update needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from wvl_ros.checkpoints import find
from wvl_ros.errors import EpisodeError
from wvl_ros.evaluation.closed_loop import Evaluator, PolicyChoice, Start
from wvl_ros.policies.small import SmallPolicy
from wvl_ros.sans.collect import collect_episode
from wvl_ros.sans.episode import Episode
from wvl_ros.sans.episodes import list_episodes
from wvl_ros.training.arena import Beginning
from wvl_ros.training.tabletop_arena import TabletopArena
from wvl_ros.worlds.experts import Skill
from wvl_ros.worlds.tabletop import TabletopWorld

SEEDS = (900_001, 900_002, 900_003)


@pytest.fixture(scope="module")
def starts(tmp_path_factory: pytest.TempPathFactory) -> list[Beginning]:
    folder = tmp_path_factory.mktemp("starts")
    world = TabletopWorld("pick_place", 64, 64)
    for seed in SEEDS:
        collect_episode(world, "pick_place", seed, steps=1).save(folder / f"{seed}.safetensors")
    return [Beginning(entry) for entry in list_episodes(folder)]


@pytest.fixture
def arena() -> Iterator[TabletopArena]:
    with closing(TabletopArena()) as arena:
        yield arena


@pytest.mark.parametrize("name", ["small", "base"])
def test_a_deployed_policy_does_there_what_it_does_in_an_evaluation(
    name: str, arena: TabletopArena, starts: list[Beginning]
) -> None:
    evaluator = Evaluator(PolicyChoice(find("policy", name)))
    expected = [evaluator.run(Start("pick_place", seed)) for seed in SEEDS]
    policy = SmallPolicy.from_pretrained(find("policy", name))
    practice = arena.practise(policy, starts, [0, 0, 0], 0.0, torch.Generator())
    assert practice.success.tolist() == [result.success and result.steps <= 60 for result in expected]
    assert practice.success.any() or name != "small"
    steps = practice.counts.sum((1, 2)).tolist()
    assert steps == [min(60, result.steps) for result in expected]


def test_rollouts_of_a_start_differ_and_come_again_with_their_seed(
    arena: TabletopArena, starts: list[Beginning]
) -> None:
    policy = SmallPolicy.from_pretrained(find("policy", "small"))
    group = [starts[0], starts[0], starts[1]]
    first, again = (
        arena.practise(policy, group, [0] * 3, 1.0, torch.Generator().manual_seed(5)) for _ in range(2)
    )  # fmt: skip
    assert torch.equal(first.actions, again.actions)
    assert torch.equal(first.images[0, 0], first.images[1, 0])  # one start
    assert not torch.equal(first.images[0, 0], first.images[2, 0])
    assert not torch.equal(first.actions[0, 0], first.actions[1, 0])
    rows, decisions = first.counts.any(2).nonzero(as_tuple=True)
    out = policy.network(first.inputs(rows, decisions))
    told = policy.noise.log_prob_parts(out.mean, out.gripper, first.actions[rows, decisions], 1.0)
    assert torch.allclose(told, first.log_probs[rows, decisions], atol=1e-3)


def test_a_rollout_can_begin_inside_an_episode(arena: TabletopArena, tmp_path: Path) -> None:
    world = TabletopWorld("pick_place", 64, 64)
    whole = collect_episode(world, "pick_place", SEEDS[0], Skill(), steps=60)
    assert whole.outcome == "success"
    whole.save(tmp_path / "0.safetensors")
    (entry,) = list_episodes(tmp_path)
    first = int(np.flatnonzero(whole.reward)[0])
    policy = SmallPolicy.from_pretrained(find("policy", "small"))
    for step in (12, first // 6 * 6):
        practice = arena.practise(policy, [Beginning(entry, step)], [0], 0.0, torch.Generator())
        assert int(practice.counts.sum()) <= 60 - step
        there = torch.as_tensor(whole.cartesian_position[step, :3]).float()
        assert torch.allclose(practice.state[0, 0, :3], there, atol=1e-3)  # where the recording was at that step
    assert practice.success.item()  # all but done: the cube is set down on the disk


def test_only_the_tabletop_s_own_episodes_are_starts(
    arena: TabletopArena, make_episode: Callable[..., Episode], tmp_path: Path
) -> None:
    make_episode().save(tmp_path / "0.safetensors")
    policy = SmallPolicy.from_pretrained(find("policy", "small"))
    with pytest.raises(EpisodeError, match="not one of the tabletop's"):
        arena.practise(policy, [Beginning(list_episodes(tmp_path)[0])], [0], 0.0, torch.Generator())
