"""From observations and instructions to the network's input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from wvl_ros.errors import CheckpointError, ObservationError
from wvl_ros.policies.openvla_oft.actions import CONVENTIONS
from wvl_ros.policies.openvla_oft.checkpoint import PROPRIO, TOKENIZER, Checkpoint
from wvl_ros.policies.openvla_oft.images import prepare
from wvl_ros.policies.openvla_oft.network import Inputs
from wvl_ros.policies.state import state_part

START, PROMPT_END = 1, 29871  # '<s>', and the empty word after which the actions begin


class ObservationReader:
    """Images, prompt and state as a checkpoint wants them."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        """
        Raises:
            CheckpointError: the statistics of the state or the tokenizer are missing or damaged.
        """
        self._config, self._settings = checkpoint.config, checkpoint.settings
        self._convention = CONVENTIONS[self._settings.convention]
        self._bounds = checkpoint.bounds("proprio", self._convention.state_dim) if PROPRIO in checkpoint.parts else None
        try:
            self._tokenizer = Tokenizer.from_str(checkpoint.kept[TOKENIZER].decode())
        except Exception as error:  # tokenizers raises no other class
            raise CheckpointError(f"The {TOKENIZER} is damaged ({error}); copy it again.") from error

    def read(self, observations: Sequence[Mapping[str, np.ndarray]], instructions: Sequence[str]) -> Inputs:
        """The network's input for B observations and their instructions, in main memory.

        Raises:
            ObservationError: a camera or a state is missing or has the wrong shape, or an instruction is too long.
        """
        if len(observations) != len(instructions):
            raise ObservationError(f"There are {len(observations)} observations, but {len(instructions)} instructions.")
        images = torch.stack([self._images(observation) for observation in observations])
        prompts = [self._prompt(instruction) for instruction in instructions]
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        words = torch.stack([F.pad(prompt, (0, int(lengths.max()) - len(prompt))) for prompt in prompts])
        if self._bounds is None:
            return Inputs(images, words, lengths)
        states = np.stack([self._state(observation) for observation in observations])
        return Inputs(images, words, lengths, torch.from_numpy(self._bounds.normalise(states)).float())

    def _images(self, observation: Mapping[str, np.ndarray]) -> Tensor:
        cameras = self._settings.cameras
        missing = [camera for camera in cameras if camera not in observation]
        if missing:
            raise ObservationError(f"The camera '{missing[0]}' is missing; OpenVLA looks at: {', '.join(cameras)}.")
        size, crop = self._config.image_size, self._settings.center_crop
        return torch.stack([prepare(np.asarray(observation[camera]), size, crop, camera) for camera in cameras])

    def _prompt(self, instruction: str) -> Tensor:
        text = f"In: What action should the robot take to {instruction.lower()}?\nOut:"
        words = self._tokenizer.encode(text).ids
        words = [*([] if words[:1] == [START] else [START]), *words, PROMPT_END]
        longest = self._config.longest
        if len(words) > longest:
            raise ObservationError(f"The instruction has {len(words)} words and parts, but at most {longest} are read.")
        return torch.tensor(words)

    def _state(self, observation: Mapping[str, np.ndarray]) -> NDArray[np.float64]:
        gripper = state_part(observation, "gripper_position", 1)
        return self._convention.state_of(state_part(observation, "cartesian_position", 6), float(gripper[0]))
