"""OpenVLA-OFT as a policy: chunks of 8 actions in one pass, from tokens or from the L1 head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from wvl_ros.errors import ConfigError
from wvl_ros.policies.interface import Chunk
from wvl_ros.policies.openvla_oft import lora, weights
from wvl_ros.policies.openvla_oft.actions import ACTION_DIM, CONVENTIONS, decode, encode
from wvl_ros.policies.openvla_oft.checkpoint import Checkpoint, read
from wvl_ros.policies.openvla_oft.config import Settings
from wvl_ros.policies.openvla_oft.network import Inputs, OpenVLANetwork
from wvl_ros.policies.openvla_oft.observations import ObservationReader

NAME = "openvla_oft"


@dataclass(frozen=True)
class Draw:
    """Chunks as tokens, drawn.

    Attributes:
        tokens: int64 (B, T, 7), 0..255, see `actions`.
        log_probs: float32 (B, T, 7), of each token.
    """

    tokens: Tensor
    log_probs: Tensor


class OpenVLAPolicy:
    """A `Policy` around `OpenVLANetwork`.

    A checkpoint with an L1 head gives one chunk of continuous actions. One without has a distribution over 256 tokens
    for each of an action's seven numbers: the most likely are deployed, samples with log-probabilities are for GRPO
    (`draw`, `log_prob`), and `tokens` with `log_prob` at temperature 1 for imitation.

    Velocities are relative to the last *commanded* pose, see `SmallPolicy`.
    """

    action_space: str = "cartesian_velocity"

    def __init__(
        self,
        network: OpenVLANetwork,
        checkpoint: Checkpoint,
        *,
        name: str = NAME,
        sample: bool = False,
        temperature: float = 1.6,
    ) -> None:
        """Wraps a network.

        Args:
            checkpoint: the rest of its folder.
            name: what the user calls it.
            sample: whether `act` samples.
            temperature: by which scores are divided for sampling; 1.6 is SimpleVLA-RL's.

        Raises:
            ConfigError: sampling from an L1 head, or a temperature that is not positive.
            CheckpointError: the statistics or the tokenizer do not fit.
        """
        if not temperature > 0:
            raise ConfigError(f"OpenVLA's temperature must be positive, but is {temperature}.")
        settings = checkpoint.settings
        self.network, self.checkpoint, self.settings = network, checkpoint, settings
        self.name, self.sample, self.temperature = name, sample, temperature
        self.chunk_size, self.execute_steps = settings.chunk_size, settings.execute_steps
        self.convention = CONVENTIONS[settings.convention]
        self._bounds = checkpoint.bounds("action", ACTION_DIM)
        self._reader = ObservationReader(checkpoint)
        self._generator = torch.Generator()
        self._adapter: Any = None
        if sample:
            self._refuse_l1_head()

    def reset(self, seed: int | None = None) -> None:
        """Starts an episode: seeds the sampling, or takes a random seed where none is given."""
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(seed)

    def inputs(self, observations: Sequence[Mapping[str, np.ndarray]], instructions: Sequence[str]) -> Inputs:
        """The network's input for B observations and their instructions, in main memory.

        Raises:
            ObservationError: a camera or a state is missing or has the wrong shape, or an instruction is too long.
        """
        return self._reader.read(observations, instructions)

    def act(self, observations: Sequence[dict[str, np.ndarray]], instructions: Sequence[str]) -> Chunk:
        """Chunks for B observations; with log-probabilities when sampled.

        Raises:
            ObservationError: a camera or a state is missing or has the wrong shape.
        """
        inputs = self.inputs(observations, instructions)
        with torch.inference_mode():
            if self.sample:
                drawn = self.draw(inputs)
                return Chunk(self.actions(drawn.tokens), drawn.log_probs.sum(-1).cpu().numpy())
            answers = self.network(inputs.to(self.network.device))
            if self.network.action_head is not None:
                return Chunk(self._to_world(self.network.action_head(answers).double().cpu().numpy()))
            return Chunk(self.actions(self._by_action(self.network.logits(answers)).argmax(-1)))

    def draw(self, inputs: Inputs, temperature: float | None = None) -> Draw:
        """Chunks drawn at random, with the CPU's random numbers whatever the device.

        Args:
            temperature: None takes the policy's own.

        Raises:
            ConfigError: the checkpoint has an L1 head.
        """
        with torch.no_grad():
            log_probs = self._distribution(inputs, temperature)
        flat = torch.multinomial(log_probs.exp().cpu().flatten(0, 2), 1, generator=self._generator)
        tokens = flat.view(log_probs.shape[:3]).to(log_probs.device)
        return Draw(tokens, log_probs.gather(-1, tokens[..., None])[..., 0])

    def log_prob(self, inputs: Inputs, tokens: Tensor, temperature: float | None = None) -> Tensor:
        """Log-probabilities float32 (B, T, 7) of tokens (B, T, 7) under the present weights; differentiable.

        Raises:
            ConfigError: the checkpoint has an L1 head.
        """
        log_probs = self._distribution(inputs, temperature)
        return log_probs.gather(-1, tokens.to(log_probs.device)[..., None])[..., 0]

    def actions(self, tokens: Tensor) -> NDArray[np.float64]:
        """Actions (B, T, 7) of `action_space` that tokens (B, T, 7) mean."""
        return self._to_world(decode(tokens.cpu().numpy()))

    def tokens(self, actions: ArrayLike) -> Tensor:
        """Tokens int64 (B, T, 7) that come closest to actions (B, T, 7) of `action_space`; to imitate them."""
        return torch.from_numpy(encode(self._bounds.normalise(self.convention.from_world(actions))))

    def add_lora(self, rank: int = 32, alpha: int = 16) -> list[nn.Parameter]:
        """Puts an adapter beside every linear layer.

        Returns:
            What is to be trained: the adapter, and whole what a checkpoint has of an L1 head and a state projector.

        Raises:
            ConfigError: it has one already, or rank or alpha is less than 1.
        """
        self._refuse_second_adapter()
        self._adapter = lora.add_lora(self.network, rank, alpha)
        return self._trained()

    def save_lora(self, folder: Path | str) -> None:
        """Writes the adapter alone; `load_lora` reads it. What was trained whole is in `save_pretrained`'s folder.

        Raises:
            ConfigError: there is none.
        """
        lora.save_lora(self._the_adapter(), Path(folder))

    def load_lora(self, folder: Path | str) -> list[nn.Parameter]:
        """Puts a saved or a published adapter on, to be merged or trained further; returns what `add_lora` does.

        Raises:
            ConfigError: it has one already.
            CheckpointError: it is missing, damaged or of another network.
        """
        self._refuse_second_adapter()
        self._adapter = lora.load_lora(self.network, Path(folder))
        return self._trained()

    def merge_lora(self) -> None:
        """Adds the adapter into the weights.

        Raises:
            ConfigError: there is none.
        """
        lora.merge_lora(self._the_adapter())
        self._adapter = None

    def save_pretrained(self, folder: Path | str, shard: int = weights.SHARD) -> None:
        """Writes a folder in the published layout, as safetensors and JSON, each file whole or not at all.

        Args:
            shard: bytes of weights a file.

        Raises:
            ConfigError: an adapter is not merged, or the folder holds other weights.
        """
        weights.write(Path(folder), self.checkpoint, self.network, shard)

    @classmethod
    def from_pretrained(
        cls,
        folder: Path | str,
        *,
        settings: Settings | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> OpenVLAPolicy:
        """Reads a published folder, or what `save_pretrained` wrote.

        Args:
            settings: instead of those in its `wvl_policy.json`.
            device: None takes the GPU when there is one.
            dtype: of the weights; None takes that of the files, which is bfloat16 of those published.
            options: those of the constructor.

        Raises:
            CheckpointError: a file is missing, damaged, pickled with more than tensors, or of another network.
        """
        folder = Path(folder).expanduser()
        checkpoint = read(folder, settings)
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        return cls(weights.load_network(folder, checkpoint, place, dtype), checkpoint, **options)

    def _distribution(self, inputs: Inputs, temperature: float | None) -> Tensor:
        """Log-probabilities float32 (B, T, 7, 256)."""
        self._refuse_l1_head()
        scores = self.network.logits(self.network(inputs.to(self.network.device)))
        return self._by_action(scores / (self.temperature if temperature is None else temperature)).log_softmax(-1)

    def _by_action(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(1, (self.chunk_size, ACTION_DIM))

    def _to_world(self, normalised: NDArray[np.float64]) -> NDArray[np.float64]:
        return self.convention.to_world(self._bounds.restore(normalised))

    def _trained(self) -> list[nn.Parameter]:
        for part in (self.network.action_head, self.network.proprio_projector):
            if part is not None:
                part.requires_grad_(True)
        return [parameter for parameter in self.network.parameters() if parameter.requires_grad]

    def _refuse_second_adapter(self) -> None:
        if self._adapter is not None:
            raise ConfigError("The policy has an adapter already; merge it first.")

    def _the_adapter(self) -> Any:
        if self._adapter is None:
            raise ConfigError("The policy has no adapter; add or load one first.")
        return self._adapter

    def _refuse_l1_head(self) -> None:
        if self.network.action_head is not None:
            raise ConfigError(
                "This OpenVLA-OFT checkpoint has an L1 head, which gives one action and no probability of it, so that "
                "there is nothing to sample and GRPO cannot learn; take a checkpoint with action tokens (without "
                "action_head--N_checkpoint.pt)."
            )
