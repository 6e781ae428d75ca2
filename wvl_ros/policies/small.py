"""The small VLA that ships with the package: images, an instruction and the state in, Cartesian velocities out."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from wvl_ros.errors import CheckpointError, ObservationError
from wvl_ros.policies import flow
from wvl_ros.policies.interface import Chunk
from wvl_ros.policies.network import Inputs, Outputs, PolicyConfig, PolicyNetwork
from wvl_ros.policies.noise import ChunkNoise
from wvl_ros.policies.state import state_part
from wvl_ros.policies.tokenizer import WordTokenizer
from wvl_ros.policies.vision import shrink
from wvl_ros.worlds.droid import euler_to_matrix

ARCHITECTURE = "wvl_ros.SmallPolicy"
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"


def state_vector(observation: Mapping[str, np.ndarray]) -> np.ndarray:
    """State float32 (10,) of an observation: flange position, first two columns of its rotation, gripper.

    Raises:
        ObservationError: `cartesian_position` or `gripper_position` is missing, misshapen or not a number.
    """
    pose, gripper = state_part(observation, "cartesian_position", 6), state_part(observation, "gripper_position", 1)
    rotation = euler_to_matrix(pose[3:])
    return np.concatenate([pose[:3], rotation[:, 0], rotation[:, 1], gripper]).astype(np.float32)


class SmallPolicy:
    """A `Policy` around `PolicyNetwork`: the mean is deployed, samples with log-probabilities are for learning.

    With a flow head every chunk is drawn, by the seed of the episode, and there are no log-probabilities.

    Velocities are relative to the last *commanded* pose: whoever executes a chunk converts it once, at its start
    (`droid.convert_chunk` or `policies.broker.ChunkBroker`).
    """

    action_space: str = "cartesian_velocity"

    def __init__(
        self, config: PolicyConfig, *, name: str = "small", sample: bool = False, temperature: float = 1.0
    ) -> None:
        """Makes a policy with fresh weights.

        Args:
            config: what it is made of.
            name: what the user calls it.
            sample: whether `act` samples; if not, it gives the mean.
            temperature: of sampling, 1 is the noise of the config.
        """
        self.config = config
        self.name = name
        self.sample = sample
        self.temperature = temperature
        self.chunk_size = config.chunk_size
        self.execute_steps = config.execute_steps
        self.network = PolicyNetwork(config).eval()
        self.noise = ChunkNoise(config.chunk_size, config.offset_std, config.ripple_std, config.gripper_temperature)
        self.tokenizer = WordTokenizer(config.vocabulary, config.max_words)
        self._generator = torch.Generator()

    def reset(self, seed: int | None = None) -> None:
        """Starts an episode: seeds the sampling, or takes a random seed where none is given."""
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(seed)

    def inputs(self, observations: Sequence[Mapping[str, np.ndarray]], instructions: Sequence[str]) -> Inputs:
        """The network's input for B observations and their instructions.

        Raises:
            ObservationError: a camera or a state is missing or has the wrong shape.
        """
        if len(observations) != len(instructions):
            raise ObservationError(f"There are {len(observations)} observations, but {len(instructions)} instructions.")
        images = []
        for camera in self.config.cameras:
            if any(camera not in observation for observation in observations):
                raise ObservationError(
                    f"The camera '{camera}' is missing; the policy '{self.name}' looks at: "
                    f"{', '.join(self.config.cameras)}."
                )
            views = [np.asarray(observation[camera]) for observation in observations]
            images.append(shrink(views, self.config.image_size, camera))
        state = torch.from_numpy(np.stack([state_vector(observation) for observation in observations]))
        return Inputs(torch.stack(images, 1), state, torch.from_numpy(self.tokenizer.encode(instructions)))

    def act(self, observations: Sequence[dict[str, np.ndarray]], instructions: Sequence[str]) -> Chunk:
        """Chunks for B observations; with log-probabilities when sampled.

        Raises:
            ObservationError: a camera or a state is missing or has the wrong shape.
        """
        with torch.inference_mode():
            if self.config.head == "flow":
                known = self.network.context(self.inputs(observations, instructions))
                return Chunk(flow.draw(self.network, known, self.config.flow_steps, self._generator).double().numpy())
            outputs: Outputs = self.network(self.inputs(observations, instructions))
            if self.sample:
                actions = self.noise.sample(outputs.mean, outputs.gripper, self.temperature, self._generator)
                log_probs = self.log_prob(outputs, actions).numpy()
                return Chunk(actions.clamp(-1, 1).double().numpy(), log_probs)
            closed = (outputs.gripper > 0).float()[..., None]
            actions = torch.cat([outputs.mean.clamp(-1, 1), closed], -1)
            return Chunk(actions.double().numpy())

    def log_prob(self, outputs: Outputs, actions: Tensor) -> Tensor:
        """Log-probability (B, T) of sampled actions (B, T, 7) under the network's present outputs."""
        return self.noise.log_prob(outputs.mean, outputs.gripper, actions, self.temperature)

    def save_pretrained(self, folder: Path | str) -> None:
        """Writes `config.json` and `model.safetensors` into the folder, each whole or not at all."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = {"_class_name": ARCHITECTURE, **asdict(self.config)}
        weights = {name: tensor.contiguous() for name, tensor in self.network.state_dict().items()}
        part = folder / f".{WEIGHTS_FILE}.{os.getpid()}.part"
        save_file(weights, part, metadata={"format": "pt"})
        part.chmod(0o644)  # safetensors writes files that only their owner can read
        part.replace(folder / WEIGHTS_FILE)
        part = folder / f".{CONFIG_FILE}.{os.getpid()}.part"
        part.write_text(json.dumps(config, indent=2) + "\n")
        part.replace(folder / CONFIG_FILE)

    @classmethod
    def from_pretrained(cls, folder: Path | str, **options: Any) -> SmallPolicy:
        """Reads what `save_pretrained` wrote; `options` are those of the constructor.

        Raises:
            CheckpointError: no checkpoint there, a damaged one, or one of another architecture.
        """
        folder = Path(folder)
        policy = cls(read_config(folder), **options)
        path = folder / WEIGHTS_FILE
        if not path.is_file():
            raise CheckpointError(
                f"The weights '{path}' are missing; train them with 'wvl train policy' or copy them there."
            )
        try:
            policy.network.load_state_dict(load_file(path))
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"The weights '{path}' cannot be read: {error}.") from error
        except RuntimeError as error:
            raise CheckpointError(
                f"The weights '{path}' do not fit their {CONFIG_FILE} (copy both together), or an older wvl_ros saved "
                "them: then train again."
            ) from error
        return policy


def read_config(folder: Path) -> PolicyConfig:
    """What the checkpoint in a folder is made of; CheckpointError when it holds none."""
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise CheckpointError(f"There is no policy checkpoint in '{folder}' ({CONFIG_FILE} is missing).")
    try:
        values = json.loads(path.read_text())
    except ValueError as error:
        raise CheckpointError(f"'{path}' is not valid JSON: {error}.") from error
    kind = values.pop("_class_name", "unknown") if isinstance(values, dict) else "unknown"
    if kind != ARCHITECTURE:
        raise CheckpointError(
            f"'{folder}' holds a checkpoint of '{kind}', but the policy 'small' needs '{ARCHITECTURE}'."
        )
    unknown = values.keys() - {field.name for field in fields(PolicyConfig)}
    if unknown:
        raise CheckpointError(f"'{path}' has the unknown setting '{min(unknown)}'; it was written by another version.")
    return PolicyConfig(**values)
