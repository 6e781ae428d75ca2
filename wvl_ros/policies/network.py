"""The small VLA's network: keypoints from images, words and state in; a chunk of velocities and two key places out."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wvl_ros.errors import ConfigError, UnknownNameError
from wvl_ros.policies.tokenizer import PAD, UNKNOWN
from wvl_ros.policies.vision import KeypointEncoder
from wvl_ros.worlds.droid import CAMERAS

STATE_DIM = 10  # flange position 3, first two columns of its rotation 6, gripper 1
PLACE_DIM = 6  # flange position where the tool goes to work 3, and where it ends 3

HEADS = ("gaussian", "flow")
FLOW_TIMES = 8  # sines and cosines that tell a flow head the time

_POSITION_MEAN = (0.5, 0.0, 0.25)
_POSITION_SCALE = (0.12, 0.2, 0.12)
_PLACE_MEAN = (0.5, 0.0, 0.13)
_PLACE_SCALE = (0.08, 0.12, 0.03)


@dataclass(frozen=True)
class PolicyConfig:
    """What a small policy is; stored in its checkpoint.

    Attributes:
        cameras: names of the cameras it looks at.
        image_size: side in pixels to which images are averaged.
        patch: side of the pixel patches that the first convolution sees.
        channels, layers, keypoints: of each camera's encoder.
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
            if isinstance(value, (int, float)) and not value > 0:
                raise ConfigError(f"The policy's {field.name} must be positive, but is {value}.")
        if self.head not in HEADS:
            raise UnknownNameError("policy head", self.head, HEADS)
        if not self.cameras:
            raise ConfigError("The policy's cameras are empty; name at least one.")
        if self.image_size % self.patch:
            raise ConfigError(
                f"The policy's image_size {self.image_size} must be a multiple of its patch {self.patch}."
            )
        if self.execute_steps > self.chunk_size or self.execute_steps % 3:
            # Imagination makes one frame every three control steps, so a policy can look again only then.
            raise ConfigError(
                f"The policy's execute_steps must be a multiple of 3 up to chunk_size {self.chunk_size}, "
                f"but is {self.execute_steps}."
            )


@dataclass
class Inputs:
    """A batch: images uint8 (B, cameras, 3, S, S), state float32 (B, 10), words int64 (B, max_words)."""

    images: Tensor
    state: Tensor
    words: Tensor


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


def normalise_places(places: Tensor) -> Tensor:
    """Key places (B, 6) in m as the network's targets of about unit size."""
    return (places - places.new_tensor(2 * _PLACE_MEAN)) / places.new_tensor(2 * _PLACE_SCALE)


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


class PolicyNetwork(nn.Module):
    """A keypoint encoder per camera and a multilayer perceptron that is told where things are relative to the hand."""

    position_mean: Tensor
    position_scale: Tensor
    place_mean: Tensor
    place_scale: Tensor

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__()
        self.chunk_size, self.flows = config.chunk_size, config.head == "flow"
        dim, hidden = config.language_dim, config.hidden
        self.language = LanguageEncoder(len(config.vocabulary), dim)
        self.encoders = nn.ModuleList(
            [
                KeypointEncoder(config.image_size, config.patch, config.channels, config.keypoints, config.layers, dim)
                for _ in config.cameras
            ]
        )
        features = sum(3 * config.keypoints for _ in config.cameras) + STATE_DIM + dim
        self.trunk = nn.Sequential(nn.Linear(features, hidden), nn.SiLU())
        self.places = nn.Sequential(nn.Linear(hidden, hidden // 2), nn.SiLU(), nn.Linear(hidden // 2, PLACE_DIM))
        known = hidden + STATE_DIM + dim + 2 * PLACE_DIM
        given = config.chunk_size * 7 + FLOW_TIMES if self.flows else 0
        self.head = nn.Sequential(
            nn.Linear(known + given, hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
            nn.Linear(hidden, config.chunk_size * 7),
        )
        self.register_buffer("position_mean", torch.tensor(_POSITION_MEAN), persistent=False)
        self.register_buffer("position_scale", torch.tensor(_POSITION_SCALE), persistent=False)
        self.register_buffer("place_mean", torch.tensor(_PLACE_MEAN), persistent=False)
        self.register_buffer("place_scale", torch.tensor(_PLACE_SCALE), persistent=False)

    def forward(self, inputs: Inputs) -> Outputs:
        """The chunk's mean, the gripper's logits and the key places for a batch; of a Gaussian head."""
        known = self.context(inputs)
        out = self.head(known.features).float()
        out = out.view(len(out), self.chunk_size, 7)
        return Outputs(mean=out[..., :6], gripper=out[..., 6], places=known.places)

    def velocity(self, known: Context, noisy: Tensor, time: Tensor) -> Tensor:
        """Of a flow head: where noisy chunks (B, T, 7) come from at times (B,), 1 noise .. 0 action; (B, T, 7)."""
        waves = time[:, None] * torch.pi * 2.0 ** torch.arange(-1, FLOW_TIMES // 2 - 1, device=time.device)
        given = [known.features, noisy.flatten(1), waves.sin(), waves.cos()]
        return torch.as_tensor(self.head(torch.cat(given, 1)).float()).view(noisy.shape)

    def context(self, inputs: Inputs) -> Context:
        """All that a head is told of a batch."""
        language = self.language(inputs.words)
        seen = [encoder(inputs.images[:, i], language) for i, encoder in enumerate(self.encoders)]
        position = inputs.state[:, :3]
        state = torch.cat([(position - self.position_mean) / self.position_scale, inputs.state[:, 3:]], 1)
        trunk = self.trunk(torch.cat([*(feature.float() for feature in seen), state, language], 1))
        places = self.places(trunk).float()
        relative = self._relative(places, position)
        return Context(torch.cat([trunk, state, language, places, relative], 1), places)

    def _relative(self, places: Tensor, position: Tensor) -> Tensor:
        """The key places as seen from the hand (B, 6), in units of 5 cm."""
        offsets = places.view(-1, 2, 3) * self.place_scale + self.place_mean - position[:, None]
        return offsets.flatten(1) / 0.05


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
