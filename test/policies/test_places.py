"""Where the things are that an instruction names: votes find what was named, and do not fall between two things."""

from __future__ import annotations

import math

import pytest
import torch

from wvl_ros.policies.network import Inputs, PolicyConfig, PolicyNetwork, elsewhere
from wvl_ros.policies.places import (
    Found,
    PlaceFinder,
    Votes,
    hand_loss,
    misnamed_loss,
    normalise_places,
    places_in_metres,
    places_on_the_way,
    relative_places,
    turned,
    votes_loss,
    way_between,
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


def test_what_is_along_the_way_between_the_places_turns_with_it() -> None:
    position = torch.tensor([[0.46, -0.04, 0.2]])
    places = normalise_places(PLACES)
    quarter = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    turned_places = normalise_places((PLACES.view(-1, 3) @ quarter.T).view(1, 6))
    seen, seen_turned = (
        places_on_the_way(places, position),
        places_on_the_way(turned_places, position @ quarter.T),
    )
    assert torch.allclose(seen[:, :4], seen_turned[:, :4], atol=1e-4)
    # The hand is behind the first place, by 4 cm each way of 5: no step to the side, and the way is 11.3 cm long.
    assert torch.allclose(seen[0, :4] * 0.05, torch.tensor([0.0557, 0.0, 0.1671, 0.0]), atol=3e-3)
    step = torch.tensor([[[1.0, 0.5]]])
    ahead = turned(step, way_between(places)[:, None])
    assert torch.allclose(ahead @ quarter[:2, :2].T, turned(step, way_between(turned_places)[:, None]), atol=1e-5)


def test_a_way_too_short_to_lead_anywhere_has_no_direction() -> None:
    here = normalise_places(PLACES[:, [0, 1, 2, 0, 1, 2]])
    assert way_between(here).norm() < 1e-3
    assert way_between(normalise_places(PLACES)).norm() == pytest.approx(1, abs=0.03)


def test_elsewhere_on_the_table_hand_and_places_are_as_far_apart() -> None:
    inputs = Inputs(torch.zeros(1, 1, 3, 4, 4), torch.rand(1, 10), torch.ones(1, 2, dtype=torch.long))
    inputs.places = normalise_places(PLACES)
    there = elsewhere(inputs, torch.tensor([[0.1, -0.05]]))
    assert there.places is not None
    assert torch.allclose(
        relative_places(there.places, there.state[:, :3]),
        relative_places(inputs.places, inputs.state[:, :3]),
        atol=1e-4,
    )
    moved = places_in_metres(there.places) - places_in_metres(inputs.places)
    assert torch.allclose(moved, torch.tensor([0.1, -0.05, 0.0]).expand(1, 2, 3), atol=1e-6)
    assert torch.equal(there.state[:, 2:], inputs.state[:, 2:])


def test_how_far_beside_a_thing_the_tool_goes_hangs_on_the_manner_and_the_way_alone() -> None:
    torch.manual_seed(0)
    finder = PlaceFinder([True], 8, 8, 4).eval()
    torch.nn.init.normal_(finder.beside.weight)
    language = torch.randn(1, 4).expand(2, -1)
    things = torch.tensor([[0.0, 0.0], [1.0, 0.0]]).expand(2, 2, 2).clone()
    things[1] = things[1] + torch.tensor([0.5, -1.0])
    here, there = finder._go_beside(things, language)
    assert torch.allclose(here, there)
    assert not torch.allclose(here, finder._go_beside(things[:1], torch.randn(1, 4))[0], atol=1e-2)
    assert not torch.allclose(here, finder._go_beside(-things[:1], language[:1])[0], atol=1e-2)
    finder.train()  # then what is told is vague, so that little of it can be learned by heart
    assert not torch.equal(*finder._go_beside(things, language))


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


def test_cameras_that_stand_still_know_things_by_the_same_looks_and_that_on_the_hand_by_its_own() -> None:
    torch.manual_seed(0)
    finder = PlaceFinder([True, False, True], 8, 8, 4)
    images = torch.randint(256, (1, 1, 3, 8, 8), dtype=torch.uint8).expand(1, 3, 3, 8, 8)
    one, hand, other = finder.look(images).split(16, 2)
    assert torch.allclose(one, other, atol=1e-5)
    assert not torch.allclose(one, hand, atol=1e-2)


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
    network = PolicyNetwork(PolicyConfig(cameras=CAMERAS, place_channels=8, channels=8, keypoints=4, hidden=32)).eval()
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
