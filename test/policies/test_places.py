"""Where the things are that an instruction names: votes find what was named, and do not fall between two things."""

from __future__ import annotations

import math

import pytest
import torch

from wvl_ros.policies.network import Inputs, PolicyConfig, PolicyNetwork
from wvl_ros.policies.places import PlaceFinder, Votes, misnamed_loss, normalise_places, votes_loss

PLACES = torch.tensor([[0.5, 0.0, 0.13, 0.58, 0.08, 0.13]])
CAMERAS = ("exterior_image_1_left", "exterior_image_2_left", "wrist_image_left")


def votes_at(points: list[tuple[float, float]], weights: list[float]) -> Votes:
    """One scene's votes, of both places alike, at points in m."""
    place = (torch.tensor(points) - torch.tensor([0.5, 0.0])) / 0.08
    return Votes(
        torch.tensor(weights).log().expand(1, 2, -1),
        place.expand(1, 2, -1, 2),
        torch.zeros(1, 2, 2),
        torch.full((2, len(points)), 0.1),
        torch.full((1, 2), 0.13),
    )


def test_votes_for_two_things_are_not_averaged() -> None:
    finder = PlaceFinder(1, 8, 8, 4)
    votes = votes_at([(0.45, -0.1), (0.46, -0.1), (0.55, 0.1)], [0.3, 0.3, 0.35])
    found = finder.places(votes).view(2, 3) * torch.tensor([0.08, 0.12, 0.03]) + torch.tensor([0.5, 0.0, 0.13])
    # The strongest single vote is for another thing, but two agree on this one.
    assert torch.allclose(found, torch.tensor([0.455, -0.1, 0.13]).expand(2, 3), atol=6e-3)


def test_votes_cost_the_less_the_nearer_they_are() -> None:
    costs = [float(votes_loss(votes_at([(x, 0.0)], [0.9]), PLACES[:, [0, 1, 2, 0, 1, 2]])) for x in (0.5, 0.52, 0.6)]
    assert costs[0] < costs[1] < costs[2]
    half = PLACES.clone()
    half[:, 3:] = math.nan
    assert votes_loss(votes_at([(0.5, 0.0)], [0.9]), half) == pytest.approx(costs[0])
    assert votes_loss(votes_at([(0.5, 0.0)], [0.9]), half * math.nan) == 0


def test_only_votes_for_all_that_was_meant_are_misnamed() -> None:
    both, none = PLACES[:, [0, 1, 2, 0, 1, 2]], votes_at([(0.7, 0.3)], [0.9])
    there = votes_at([(0.5, 0.0)], [0.9])
    assert misnamed_loss(there, both) > 1
    assert misnamed_loss(none, both) < 0.01
    assert misnamed_loss(there, PLACES) < 0.01  # one place of two is what it was
    assert misnamed_loss(there, both * math.nan) == 0


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
