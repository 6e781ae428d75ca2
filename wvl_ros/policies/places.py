"""Where the things are that an instruction names: every small part of an image votes for a place, by its looks.

The place of a vote depends on where in the image it is cast (and on where the camera is carried, see `sight`), and
nothing else; its weight on the 6 by 6 pixels around it and on the words. So scenes cannot be learned by heart, and some
dozen demonstrations tell what the words mean. Along which line a pixel looks, the arm's own hand teaches: where that
is, is known in every frame.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wvl_ros.policies.sight import CENTER, HAND_HEIGHT, UNIT, CarriedSight, FixedSight, across

PLACES = 2  # flange positions where the tool goes to work, and where it ends
_MEAN, _SCALE = (*CENTER, HAND_HEIGHT), (0.08, 0.12, 0.03)  # m
STRIDE = 2  # pixels that one vote is for, each way
_COLORS = 48
_COMPARED, _AGREE = 16, 0.3  # votes compared with each other; those within 2.4 cm are for the same thing
MANNERS, _VAGUE = 2, 0.3  # numbers from -1 to 1 that tell a manner of working, and the noise on them
_BESIDE = 1.5  # 12 cm: how far the tool may go to work beside the thing itself
_NOWHERE = 0.02  # m: a way about as short leads nowhere
_SMALLEST = 0.06  # deviation of a vote
_NEAR, _EDGE = 0.5, 12.0  # 4 cm, and how sharp this limit is: what lies nearer is the same thing


class Votes(NamedTuple):
    """N votes for each of P places, across the table in units of 8 cm.

    Attributes:
        weight: (B, P, N) log-probabilities; what is missing to 1 is that it is not to be seen.
        place: (B, P, N, 2) x, y of each vote. deviation: (P, N).
    """

    weight: Tensor
    place: Tensor
    deviation: Tensor

    def apart(self, places: Tensor) -> Tensor:
        """Distances (B, P, N) of the votes from places (B, P, 2)."""
        return (self.place - places[:, :, None]).square().sum(-1).add(1e-4).sqrt()

    def agree(self) -> Tensor:
        """Places (B, P, 2): the mean of the votes that agree with the one that most of the strongest agree with."""
        strength = self.weight - 2 * self.deviation.log()
        top = strength.topk(min(_COMPARED, strength.shape[-1]), -1).indices  # (B, P, K)
        chosen = self.place.gather(2, top[..., None].expand(-1, -1, -1, 2))
        between = (chosen[:, :, None] - chosen[:, :, :, None]).norm(dim=-1)
        agreed = (strength.gather(-1, top)[:, :, None] - between / _AGREE).logsumexp(-1)
        best = chosen.gather(2, agreed.argmax(-1)[..., None, None].expand(-1, -1, 1, 2))[:, :, 0]
        share = (strength - self.apart(best) / self.deviation).softmax(-1)
        return (share[..., None] * self.place).sum(2)


class Found(NamedTuple):
    """What was found of the things that an instruction names.

    Attributes:
        votes: for where they are. things: (B, 2, 2) on what most votes agree, in their units; no gradient.
        beside: (B, 2, 2) how far from there the tool goes to work, and ends. height: (B, 2) of the flange then, m.
    """

    votes: Votes
    things: Tensor
    beside: Tensor
    height: Tensor

    @property
    def places(self) -> Tensor:
        """Key places (B, 6), normalised; no gradient."""
        there = UNIT * (self.things + self.beside) + self.things.new_tensor(CENTER)
        return normalise_places(torch.cat([there, self.height[..., None]], -1).flatten(1)).detach()


def normalise_places(places: Tensor) -> Tensor:
    """Key places (B, 6) in m in numbers of about unit size."""
    return (places - places.new_tensor(PLACES * _MEAN)) / places.new_tensor(PLACES * _SCALE)


def places_in_metres(places: Tensor) -> Tensor:
    """Key places (B, 2, 3) in m of normalised ones (B, 6)."""
    return places.view(-1, PLACES, 3) * places.new_tensor(_SCALE) + places.new_tensor(_MEAN)


def relative_places(places: Tensor, position: Tensor) -> Tensor:
    """Normalised places (B, 6) as seen from the hand at (B, 3) m, in units of 5 cm."""
    return (places_in_metres(places) - position[:, None]).flatten(1) / 0.05


def direction(way: Tensor) -> Tensor:
    """Unit vectors (..., 2) along ways (..., 2) in m; shorter ones of ways so short that they lead nowhere."""
    return way / (way.square().sum(-1, keepdim=True) + _NOWHERE**2).sqrt()


def turned(vectors: Tensor, ahead: Tensor) -> Tensor:
    """Across the table, vectors (..., 2) that are given along directions (..., 2) and to the left of them."""
    left = torch.stack([-ahead[..., 1], ahead[..., 0]], -1)
    return vectors[..., :1] * ahead + vectors[..., 1:] * left


def way_between(places: Tensor) -> Tensor:
    """Direction (B, 2) from the first to the second of normalised places (B, 6)."""
    there = places_in_metres(places)[..., :2]
    return direction(there[:, 1] - there[:, 0])


def places_on_the_way(places: Tensor, position: Tensor) -> Tensor:
    """Where normalised places (B, 6) are from the hand at (B, 3) m, along the way from the first to the second and to
    the left of it, in units of 5 cm; and this way's direction: (B, 6).
    """
    apart = (places_in_metres(places) - position[:, None])[..., :2] / 0.05
    ahead = way_between(places)
    back = ahead * ahead.new_tensor([1.0, -1.0])  # turns what is across the table to what is along the way
    return torch.cat([turned(apart, back[:, None]).flatten(1), ahead], 1)


def moved(places: Tensor, by: Tensor) -> Tensor:
    """Normalised places (B, 6) moved across the table by (B, 2) m."""
    return (places.view(-1, PLACES, 3) + F.pad(by / by.new_tensor(_SCALE[:2]), (0, 1))[:, None]).flatten(1)


class _Norm(nn.LayerNorm):
    """Layer norm over the channels of (B, C, H, W): without it most fits had found nothing after 1,200 updates."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Manner(nn.Linear):
    """The manner of working that an instruction asks for: two numbers of its embedding, vague while they are learned,
    so that they tell one manner from another and little more.
    """

    def __init__(self, language_dim: int) -> None:
        super().__init__(language_dim, MANNERS)

    def forward(self, language: Tensor) -> Tensor:
        """(B, MANNERS), -1 to 1 and a little beyond, of embeddings (B, D)."""
        manner = torch.tanh(super().forward(language).float())
        return manner + _VAGUE * torch.randn_like(manner) if self.training else manner


class PlaceFinder(nn.Module):
    """Finds by the votes of all cameras' pixels.

    Args:
        fixed: of each camera, whether it stands still; the others are on the hand.
        size: side of the images in pixels.
        channels: of what pixels look like.
        language_dim: of an instruction's embedding.
    """

    grid: Tensor

    def __init__(self, fixed: Sequence[bool], size: int, channels: int, language_dim: int) -> None:
        super().__init__()
        line = torch.linspace(-1, 1, size // STRIDE)
        rows, columns = torch.meshgrid(line, line, indexing="ij")
        self.register_buffer("grid", torch.stack([columns.flatten(), rows.flatten()], 1), persistent=False)
        colors, around = nn.Conv2d(3 * STRIDE**2, _COLORS, 1), nn.Conv2d(_COLORS, channels, 3, padding=1)
        nn.init.kaiming_normal_(colors.weight, nonlinearity="linear")
        nn.init.kaiming_normal_(around.weight)
        self.appearance = nn.Sequential(colors, nn.GELU(), _Norm(_COLORS), around, nn.GELU(), _Norm(channels))
        self.fixed = tuple(fixed)
        # Cameras that stand still know by the same looks: where one sees the hand, the others soon do. With looks of
        # their own some saw it never.
        self.keys = nn.ModuleList([nn.Conv2d(channels, channels, 1) for _ in (False, True)])
        self.query = nn.Linear(language_dim, PLACES * channels)
        self.hand = nn.Parameter(torch.randn(channels))
        self.sights = nn.ModuleList([(FixedSight if still else CarriedSight)(PLACES) for still in fixed])
        self.height = nn.Linear(language_dim, PLACES)
        self.unseen = nn.Parameter(torch.zeros(PLACES))
        self.spread = nn.Parameter(torch.zeros(len(fixed), PLACES + 1))
        self.manner, self.beside = Manner(language_dim), nn.Linear(MANNERS, 4 * PLACES)
        nn.init.normal_(self.beside.weight, std=0.01)
        nn.init.zeros_(self.beside.bias)

    def look(self, images: Tensor) -> Tensor:
        """What all parts of images uint8 (B, cameras, 3, S, S) look like, (B, channels, N); no word is needed."""
        count, cameras = images.shape[:2]
        precision = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else self.query.weight.dtype
        x = F.pixel_unshuffle(images.flatten(0, 1), STRIDE).to(precision) / 127.5 - 1
        x = self.appearance(x.contiguous(memory_format=torch.channels_last))
        x = x.reshape(count, cameras, *x.shape[1:])
        return torch.cat([self.keys[still](x[:, i]).flatten(2) for i, still in enumerate(self.fixed)], 2)

    def forward(self, looks: Tensor, language: Tensor, state: Tensor) -> Found:
        """What an instruction's embedding (B, D) names, of what `look` says in states (B, 10)."""
        votes = self.vote(looks, language, state)
        with torch.no_grad():
            things = votes.agree()
        beside = self._go_beside(things, language)
        height = _MEAN[2] + _SCALE[2] * self.height(language).float()
        return Found(votes, things, beside, height)

    def _go_beside(self, things: Tensor, language: Tensor) -> Tensor:
        """How far from things (B, 2, 2) the tool goes to work, and ends; in their units.

        That depends on the manner of working alone, of which an instruction tells little more than a bit: of all that
        it tells, or of where things are, it would be learned by heart how each demonstration missed them.
        """
        plain, along = (
            (_BESIDE * torch.tanh(self.beside(self.manner(language)).float())).view(-1, 2, PLACES, 2).unbind(1)
        )
        return plain + turned(along, direction(UNIT * (things[:, 1] - things[:, 0]))[:, None])

    def vote(self, looks: Tensor, language: Tensor, state: Tensor) -> Votes:
        """The votes for that."""
        count, channels = looks.shape[:2]
        query = self.query(language).view(count, PLACES, channels) * (4 / math.sqrt(channels))
        alike = torch.cat([(query @ looks).float(), self.unseen.expand(count, -1)[..., None]], -1)
        with torch.autocast("cpu", enabled=False):
            place = torch.cat([sight(self.grid, state) for sight in self.sights], 2)
        return Votes(alike.log_softmax(-1)[..., :-1], place, self._deviation()[:PLACES])

    def find_hand(self, looks: Tensor, height: Tensor) -> Votes:
        """Votes of each camera that stands still, by itself, for where the hand is; its height (B,) in m is known."""
        alike = ((self.hand * (4 / math.sqrt(len(self.hand)))) @ looks).float().view(len(looks), len(self.sights), -1)
        deviation = self._deviation()[PLACES].view(len(self.sights), -1)
        fixed = {i: sight for i, sight in enumerate(self.sights) if isinstance(sight, FixedSight)}
        with torch.autocast("cpu", enabled=False):
            place = torch.stack([sight.at(self.grid, height) for sight in fixed.values()], 1)
        still = list(fixed)
        return Votes(alike[:, still].log_softmax(-1), place, deviation[still])

    def _deviation(self) -> Tensor:
        return (_SMALLEST + F.softplus(self.spread - 1)).t().repeat_interleave(len(self.grid), 1)


def votes_loss(found: Found, places: Tensor) -> Tensor:
    """Negative log-likelihood of places (B, 6) in m under the votes; a place of NaN does not count."""
    known, there, up = _told(places)
    height = F.smooth_l1_loss(found.height / _SCALE[2], up / _SCALE[2], beta=0.1, reduction="none")
    return ((_surprise(found.votes, there - found.beside) + height) * known).sum() / known.sum().clamp(min=1)


def hand_loss(votes: Votes, position: Tensor) -> Tensor:
    """The same of the hand's votes and its true position (B, 3) in m.

    Each camera is asked by itself: of those asked together some learned nothing.
    """
    return _surprise(votes, across(position)[:, None]).mean()


def misnamed_loss(wrong: Votes, right: Found, places: Tensor, silent: Tensor) -> Tensor:
    """What it costs that by other words than the right ones the true places (B, 6) in m are voted for all the same.

    By an instruction in which a word is exchanged for its opposite exactly one of the two is: which one, nobody tells.
    By one that is `silent` (B,) none is. Only where both places are known it counts.
    """
    known, there, _ = _told(places)
    near = torch.sigmoid(_EDGE * (_NEAR - wrong.apart(there - right.beside).detach()))
    voted = (wrong.weight.exp() * near).sum(-1).clamp(1e-3, 0.999)
    one = (voted * (1 - voted.flip(1))).sum(1)
    none = (1 - voted).prod(1)
    return -(torch.where(silent, none, one).log() * known.all(1)).mean()


def _surprise(votes: Votes, across: Tensor) -> Tensor:
    each = votes.weight - votes.apart(across) / votes.deviation - 2 * votes.deviation.log()
    return -each.logsumexp(-1).clamp(min=-50)


def _told(places: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Which of (B, 6) places in m are known (B, 2); where they are across (B, 2, 2), in units, and up (B, 2), in m."""
    split = places.nan_to_num().view(-1, PLACES, 3)
    return ~places.isnan().view(-1, PLACES, 3).any(-1), across(split), split[..., 2]
