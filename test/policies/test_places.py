"""Where the things are that an instruction names: votes find what was named, and do not fall between two things."""

from __future__ import annotations

import math

import pytest
import torch

from wvl_ros.policies.network import Inputs, PolicyConfig, PolicyNetwork
from wvl_ros.policies.places import (
    Found,
    PlaceFinder,
    Votes,
    hand_loss,
    misnamed_loss,
    normalise_places,
    places_in_metres,
    relative_places,
    votes_loss,
)

PLACES = torch.tensor([[0.5, 0.0, 0.13, 0.58, 0.08, 0.13]])
CAMERAS = ("exterior_image_1_left", "exterior_image_2_left", "wrist_image_left")


def found_at(points: list[tuple[float, float]], weights: list[float], beside: float = 0.0) -> Found:
    """What one scene's votes at points in m find, both places alike; the tool goes `beside` m from there in x."""
    place = (torch.tensor(points) - torch.tensor([0.5, 0.0])) / 0.08
    votes = Votes(
        torch.tensor(weights).log().expand(1, 2, -1), place.expand(1, 2, -1, 2), torch.full((2, len(points)), 0.1)
    )
    aside = torch.tensor([beside / 0.08, 0.0]).expand(1, 2, 2)
    return Found(votes, votes.agree(), aside, torch.full((1, 2), 0.13))


def test_votes_for_two_things_are_not_averaged() -> None:
    found = found_at([(0.45, -0.1), (0.46, -0.1), (0.55, 0.1)], [0.3, 0.3, 0.35])
    # The strongest single vote is for another thing, but two agree on this one.
    there = torch.tensor([0.455, -0.1, 0.13])
    assert torch.allclose(places_in_metres(found.places), there.expand(1, 2, 3), atol=6e-3)


def test_the_tool_may_go_beside_what_is_voted_for() -> None:
    found = found_at([(0.45, -0.1)], [0.9], beside=-0.07)
    told = torch.tensor([[0.38, -0.1, 0.13] * 2])
    assert torch.allclose(places_in_metres(found.places).flatten(1), told, atol=1e-5)
    assert votes_loss(found, told) < votes_loss(found_at([(0.45, -0.1)], [0.9]), told)
    relative = relative_places(found.places, torch.tensor([[0.38, -0.05, 0.33]]))
    assert torch.allclose(relative, torch.tensor([[0.0, -1.0, -4.0] * 2]), atol=1e-4)


def test_the_hand_teaches_each_camera_that_stands_still_along_which_line_a_pixel_looks() -> None:
    torch.manual_seed(0)
    finder = PlaceFinder([True, False, True], 8, 8, 4)
    looks, height = torch.randn(2, 8, 3 * 16), torch.tensor([0.13, 0.25])
    votes = finder.find_hand(looks, height)
    assert votes.place.shape == (2, 2, 16, 2)
    assert torch.allclose(votes.weight.exp().sum(-1), torch.ones(2, 2))
    hand_loss(votes, torch.rand(2, 3)).backward()
    grown = {name for name, p in finder.named_parameters() if p.grad is not None and bool(p.grad.abs().sum())}
    assert {"hand", "sights.0.ray.0.weight", "sights.2.ray.0.weight", "spread"} <= grown
    assert not {"query.weight", "sights.1.ray.0.weight"} & grown


def test_votes_cost_the_less_the_nearer_they_are() -> None:
    costs = [float(votes_loss(found_at([(x, 0.0)], [0.9]), PLACES[:, [0, 1, 2, 0, 1, 2]])) for x in (0.5, 0.52, 0.6)]
    assert costs[0] < costs[1] < costs[2]
    half = PLACES.clone()
    half[:, 3:] = math.nan
    assert votes_loss(found_at([(0.5, 0.0)], [0.9]), half) == pytest.approx(costs[0])
    assert votes_loss(found_at([(0.5, 0.0)], [0.9]), half * math.nan) == 0


def test_a_word_exchanged_moves_exactly_one_of_the_two_places() -> None:
    right = found_at([(0.5, 0.0), (0.58, 0.08)], [0.49, 0.49])
    spoken, silent = torch.tensor([False]), torch.tensor([True])

    def cost(
        first: list[float], second: list[float], places: torch.Tensor = PLACES, said: torch.Tensor = spoken
    ) -> float:
        """Of votes for the first, the second and a third place, by each of the two things named."""
        wrong = found_at([(0.5, 0.0), (0.58, 0.08), (0.4, -0.15)], [0.3] * 3)
        weight = torch.tensor([[first, second]]).clamp(min=1e-6).log()
        return float(misnamed_loss(wrong.votes._replace(weight=weight), right, places, said))

    both, only_first, only_second, neither = (
        ([0.9, 0, 0], [0, 0.9, 0]),
        ([0.9, 0, 0], [0, 0, 0.9]),
        ([0, 0, 0.9], [0, 0.9, 0]),
        ([0, 0, 0.9],) * 2,
    )
    assert cost(*only_first) < 0.2
    assert cost(*only_second) == pytest.approx(cost(*only_first), abs=0.01)
    assert min(cost(*both), cost(*neither)) > 1
    assert cost(*neither, said=silent) < 0.1 < 1 < cost(*only_first, said=silent)
    assert cost(*both, places=PLACES * math.nan) == 0


def test_normalised_places_are_of_about_unit_size() -> None:
    assert torch.allclose(normalise_places(PLACES), torch.tensor([[0.0, 0, 0, 1, 2 / 3, 0]]), atol=1e-6)


def test_places_once_found_are_not_searched_for_again_and_practice_cannot_change_them() -> None:
    torch.manual_seed(0)
    network = PolicyNetwork(PolicyConfig(cameras=CAMERAS, place_channels=8, channels=8, keypoints=4, hidden=32))
    inputs = Inputs(
        torch.randint(256, (2, 3, 3, 64, 64), dtype=torch.uint8), torch.randn(2, 10), torch.tensor([[1, 1], [1, 0]])
    )
    located = network.located(inputs)
    assert torch.equal(network(located).mean, network(inputs).mean)
    network(inputs).mean.sum().backward()
    assert all(p.grad is None for part in (network.finder, network.names) for p in part.parameters())
    assert network.head[0].weight.grad is not None
    guessing = PolicyNetwork(PolicyConfig(channels=8, keypoints=4, hidden=32))
    assert guessing.located(inputs) is inputs
