"""The small VLA's network: keypoints from images, words and state in; a chunk of velocities and two key places out."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wvl_ros.errors import ConfigError, UnknownNameError
from wvl_ros.policies.places import (
    MANNERS,
    PLACES,
    STRIDE,
    Found,
    Manner,
    PlaceFinder,
    hand_loss,
    misnamed_loss,
    moved,
    normalise_places,
    places_on_the_way,
    relative_places,
    turned,
    way_between,
)
from wvl_ros.policies.tokenizer import PAD, UNKNOWN
from wvl_ros.policies.vision import KeypointEncoder
from wvl_ros.worlds.droid import CAMERAS

STATE_DIM = 10  # flange position 3, first two columns of its rotation 6, gripper 1
PLACE_DIM = 3 * PLACES

HEADS = ("gaussian", "flow")
FLOW_TIMES = 8  # sines and cosines that tell a flow head the time

_POSITION_MEAN = (0.5, 0.0, 0.25)
_POSITION_SCALE = (0.12, 0.2, 0.12)


def is_fixed(camera: str) -> bool:
    """Whether a camera of DROID's stands still: each of its pixels always looks along the same line."""
    return camera.startswith("exterior")


@dataclass(frozen=True)
class PolicyConfig:
    """What a small policy is; stored in its checkpoint.

    Attributes:
        cameras: names of the cameras it looks at.
        image_size: side in pixels to which images are averaged.
        patch: side of the pixel patches that the first convolution sees.
        channels, layers, keypoints: of each camera's encoder.
        place_channels: of what looks for key places, in all cameras (see `places`); those that stand still are then for
            nothing else. 0: the places are guessed from keypoints of all cameras.
        hidden: width of the head.
        language_dim: width of word vectors and of the instruction's embedding.
        chunk_size: actions in a chunk. execute_steps: how many of them to execute before the next one.
        max_words: longer instructions are cut.
        head: what the chunk comes from: 'gaussian' (a mean, with noise of known density around it) or 'flow' (drawn by
            flow matching, see `flow`, in `flow_steps` steps; no density, so no GRPO).
        offset_std, ripple_std, gripper_temperature: see `noise.ChunkNoise`; of the Gaussian head.
        vocabulary: the tokeniser's words.
    """

    cameras: tuple[str, ...] = ("exterior_image_1_left", "wrist_image_left")
    image_size: int = 64
    patch: int = 4
    channels: int = 16
    layers: int = 2
    keypoints: int = 16
    place_channels: int = 0
    hidden: int = 256
    language_dim: int = 32
    chunk_size: int = 9
    execute_steps: int = 6
    max_words: int = 20
    head: str = "gaussian"
    flow_steps: int = 5
    offset_std: float = 0.02
    ripple_std: float = 0.01
    gripper_temperature: float = 0.15
    vocabulary: tuple[str, ...] = (PAD, UNKNOWN)

    def __post_init__(self) -> None:
        for name in ("cameras", "vocabulary"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for camera in self.cameras:
            if camera not in CAMERAS:
                raise UnknownNameError("camera", camera, CAMERAS)
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, (int, float)) and not value > 0 and (value < 0 or field.name != "place_channels"):
                raise ConfigError(f"The policy's {field.name} must be positive, but is {value}.")
        if self.head not in HEADS:
            raise UnknownNameError("policy head", self.head, HEADS)
        if not self.cameras:
            raise ConfigError("The policy's cameras are empty; name at least one.")
        if self.place_channels and not any(is_fixed(camera) for camera in self.cameras):
            raise ConfigError(
                "The policy's place_channels need a camera that stands still, but its cameras are "
                f"{', '.join(self.cameras)}: add {CAMERAS[0]}, or set place_channels to 0."
            )
        if self.image_size % self.patch:
            raise ConfigError(
                f"The policy's image_size {self.image_size} must be a multiple of its patch {self.patch}."
            )
        if self.place_channels and self.image_size % STRIDE:
            raise ConfigError(
                f"The policy's image_size {self.image_size} must be a multiple of {STRIDE} where places are voted for "
                "(place_channels)."
            )
        if self.execute_steps > self.chunk_size or self.execute_steps % 3:
            # Imagination makes one frame every three control steps, so a policy can look again only then.
            raise ConfigError(
                f"The policy's execute_steps must be a multiple of 3 up to chunk_size {self.chunk_size}, "
                f"but is {self.execute_steps}."
            )


@dataclass
class Inputs:
    """A batch: images uint8 (B, cameras, 3, S, S), state float32 (B, 10), words int64 (B, max_words).

    `places` (B, 6), normalised, of a network that votes for them: None where it has not looked yet.
    """

    images: Tensor
    state: Tensor
    words: Tensor
    places: Tensor | None = None


def elsewhere(inputs: Inputs, by: Tensor) -> Inputs:
    """The same with hand and places moved across the table by (B, 2) m: what is done there is the same.

    Only the cameras on the hand see the same, so it is for a network that knows the places.
    """
    assert inputs.places is not None
    return replace(inputs, state=inputs.state + F.pad(by, (0, STATE_DIM - 2)), places=moved(inputs.places, by))


class Seen(NamedTuple):
    """What the cameras see, where places are searched for: see `PlaceFinder.look` and `Found`."""

    looks: Tensor
    found: Found


class Context(NamedTuple):
    """What the network knows when it draws a chunk: `features` (B, F) and `places` (B, 6), see `Outputs`."""

    features: Tensor
    places: Tensor


@dataclass
class Outputs:
    """What a network with a Gaussian head says.

    Attributes:
        mean: (B, T, 6) normalised Cartesian velocities relative to the last commanded pose.
        gripper: (B, T) logits of closing.
        places: (B, 6) key places in normalised coordinates, see `normalise_places`.
    """

    mean: Tensor
    gripper: Tensor
    places: Tensor


class LanguageEncoder(nn.Module):
    """Two convolutions over word vectors, then the largest value of each feature: short phrases such as "blue cube"."""

    def __init__(self, words: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, dim, padding_idx=0)
        self.first = nn.Conv1d(dim, dim, 3, padding=1)
        self.second = nn.Conv1d(dim, 2 * dim, 3, padding=1)
        self.out = nn.Linear(2 * dim, dim)

    def forward(self, words: Tensor) -> Tensor:
        """Embedding (B, dim) of word numbers (B, L)."""
        distinct, rows = torch.unique(words, dim=0, return_inverse=True)
        padding = (distinct == 0)[:, None]
        x = self.embedding(distinct).transpose(1, 2)
        x = F.silu(self.first(x)).masked_fill(padding, 0.0)
        x = F.silu(self.second(x)).masked_fill(padding, -1.0)
        return self.out(x.amax(-1))[rows]


class MannerEncoder(nn.Module):
    """Words as a `Manner` alone: whoever acts by places that were found needs no more of them."""

    def __init__(self, words: int, dim: int) -> None:
        super().__init__()
        self.language = LanguageEncoder(words, dim)
        self.out = Manner(dim)

    def forward(self, words: Tensor) -> Tensor:
        """(B, MANNERS) of word numbers (B, L)."""
        manner: Tensor = self.out(self.language(words))
        return manner


class PolicyNetwork(nn.Module):
    """A keypoint encoder per camera and a multilayer perceptron that is told where things are relative to the hand."""

    position_mean: Tensor
    position_scale: Tensor

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__()
        self.chunk_size, self.flows = config.chunk_size, config.head == "flow"
        dim, hidden = config.language_dim, config.hidden
        votes = config.place_channels > 0
        words = len(config.vocabulary)
        # Of what is asked for, what acts is told `told` numbers.
        self.language = MannerEncoder(words, dim) if votes else LanguageEncoder(words, dim)
        told = MANNERS if votes else dim
        fixed = [is_fixed(camera) for camera in config.cameras]
        self.pointed = [i for i, still in enumerate(fixed) if not (votes and still)]  # cameras read as keypoints
        self.searches = votes
        self.encoders = nn.ModuleList(
            [
                KeypointEncoder(config.image_size, config.patch, config.channels, config.keypoints, config.layers, told)
                for _ in self.pointed
            ]
        )
        features = 3 * config.keypoints * len(self.pointed) + STATE_DIM + told
        self.trunk = nn.Sequential(nn.Linear(features, hidden), nn.SiLU())
        if votes:
            self.names = LanguageEncoder(words, dim)  # practice must not change what is looked for
            self.finder = PlaceFinder(fixed, config.image_size, config.place_channels, dim)
        else:
            self.places = nn.Sequential(nn.Linear(hidden, hidden // 2), nn.SiLU(), nn.Linear(hidden // 2, PLACE_DIM))
        known = hidden + STATE_DIM + told + (3 if votes else 2) * PLACE_DIM
        self.action_parts = 9 if votes else 7  # two more are across the table, along the way between the places
        given = config.chunk_size * 7 + FLOW_TIMES if self.flows else 0
        self.head = nn.Sequential(
            nn.Linear(known + given, hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
            nn.Linear(hidden, config.chunk_size * self.action_parts),
        )
        self.register_buffer("position_mean", torch.tensor(_POSITION_MEAN), persistent=False)
        self.register_buffer("position_scale", torch.tensor(_POSITION_SCALE), persistent=False)

    def forward(self, inputs: Inputs) -> Outputs:
        """The chunk's mean, the gripper's logits and the key places for a batch; of a Gaussian head."""
        known = self.context(inputs)
        out = self._actions(known.features, known.places)
        return Outputs(mean=out[..., :6], gripper=out[..., 6], places=known.places)

    def velocity(self, known: Context, noisy: Tensor, time: Tensor) -> Tensor:
        """Of a flow head: where noisy chunks (B, T, 7) come from at times (B,), 1 noise .. 0 action; (B, T, 7)."""
        waves = time[:, None] * torch.pi * 2.0 ** torch.arange(-1, FLOW_TIMES // 2 - 1, device=time.device)
        given = [known.features, noisy.flatten(1), waves.sin(), waves.cos()]
        return self._actions(torch.cat(given, 1), known.places)

    def _actions(self, features: Tensor, places: Tensor) -> Tensor:
        """The head's (B, T, 7)."""
        out: Tensor = self.head(features).float().view(len(features), self.chunk_size, self.action_parts)
        if not self.searches:
            return out
        along = turned(out[..., 7:], way_between(places)[:, None])
        return out[..., :7] + F.pad(along, (0, 5))

    def context(self, inputs: Inputs) -> Context:
        """All that a head is told of a batch."""
        language = self.language(inputs.words)
        points = [
            encoder(inputs.images[:, i], language) for i, encoder in zip(self.pointed, self.encoders, strict=True)
        ]
        position = inputs.state[:, :3]
        state = torch.cat([(position - self.position_mean) / self.position_scale, inputs.state[:, 3:]], 1)
        trunk = self.trunk(torch.cat([*(feature.float() for feature in points), state, language], 1))
        if not self.searches:
            places = self.places(trunk).float()
        elif inputs.places is not None:
            places = inputs.places
        else:
            # Only what says where things are teaches to see them: taught by the actions too, it learns by heart.
            places = self.search(inputs).found.places
        told = [trunk, state, language, places, relative_places(places, position)]
        if self.searches:
            told.append(places_on_the_way(places, position))
        return Context(torch.cat(told, 1), places)

    def search(self, inputs: Inputs) -> Seen:
        """What is found in the cameras' views."""
        looks = self.finder.look(inputs.images)
        return Seen(looks, self.finder(looks, self.names(inputs.words), inputs.state))

    def located(self, inputs: Inputs) -> Inputs:
        """A batch whose places need not be searched for again, until what votes for them has learned something."""
        if not self.searches:
            return inputs
        return replace(inputs, places=self.search(inputs).found.places)

    def finding_parameters(self) -> list[nn.Parameter]:
        """The parameters of what searches for key places; none where they are guessed."""
        return [*self.finder.parameters(), *self.names.parameters()] if self.searches else []

    def understanding_parameters(self) -> list[nn.Parameter]:
        """Those of what makes places and a manner of an instruction, which practice leaves as they are; none where the
        head is told all of it.
        """
        return [*self.finding_parameters(), *self.language.parameters()] if self.searches else []

    def looking_losses(self, seen: Seen, state: Tensor, places: Tensor, wrong: Tensor) -> dict[str, Tensor]:
        """What teaches to see apart from the task, of a batch's states (B, 10) and true key places (B, 6) in m.

        'hand': where the hand is seen. 'misnamed': the places are not what other words (B, L) name.
        """
        position, misnamed = state[:, :3], self.finder.vote(seen.looks, self.names(wrong), state)
        return {
            "hand": hand_loss(self.finder.find_hand(seen.looks, position[:, 2]), position),
            "misnamed": misnamed_loss(misnamed, seen.found, places, (wrong == 0).all(1)),
        }


def behaviour_loss(outputs: Outputs, actions: Tensor, places: Tensor) -> dict[str, Tensor]:
    """Terms of the supervised loss; NaN among the targets marks what is not known and does not count.

    Args:
        outputs: of the network.
        actions: (B, T, 7) expert's velocities and gripper commands.
        places: (B, 6) key places in m.

    Returns:
        'velocity' (smooth L1), 'gripper' (cross-entropy), 'places' (smooth L1) and their weighted sum 'loss'.
    """
    known = ~actions[..., 6].isnan()
    count = known.sum().clamp(min=1)
    actions = actions.nan_to_num()
    closed = (actions[..., 6] >= 0.5).float()
    velocity = F.smooth_l1_loss(outputs.mean, actions[..., :6], beta=0.1, reduction="none").mean(-1)
    gripper = F.binary_cross_entropy_with_logits(outputs.gripper, closed, reduction="none")
    terms = {"velocity": (velocity * known).sum() / count, "gripper": (gripper * known).sum() / count}
    terms["places"] = places_loss(outputs.places, places)
    terms["loss"] = 6 * terms["velocity"] + terms["gripper"] + terms["places"]
    return terms


def places_loss(found: Tensor, places: Tensor) -> Tensor:
    """Smooth L1 of the key places found, normalised (B, 6), against those in m; NaN does not count."""
    seen = ~places.isnan()
    each = F.smooth_l1_loss(found, normalise_places(places.nan_to_num()), beta=0.1, reduction="none")
    return (each * seen).sum() / seen.sum().clamp(min=1)
