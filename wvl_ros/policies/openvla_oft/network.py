"""OpenVLA-OFT's network: images, words and state in, all tokens of an action chunk out in one pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from wvl_ros.policies.openvla_oft.actions import ACTION_DIM, BINS
from wvl_ros.policies.openvla_oft.config import OpenVLAConfig
from wvl_ros.policies.openvla_oft.vision import FusedVision

STOP = 2  # the token '</s>'


@dataclass
class Inputs:
    """A batch of B.

    Attributes:
        images: uint8 (B, n, 3, S, S), of n cameras.
        words: int64 (B, L), the prompts from '<s>' to token 29871, then any filling.
        lengths: int64 (B,), how many of the words are the prompt's.
        state: float32 (B, D), normalised; None for a network that sees none.
    """

    images: Tensor
    words: Tensor
    lengths: Tensor
    state: Tensor | None = None

    def to(self, device: torch.device) -> Inputs:
        """The same on a device."""
        state = None if self.state is None else self.state.to(device)
        return Inputs(self.images.to(device), self.words.to(device), self.lengths.to(device), state)


class Projector(nn.Module):
    """Image features as tokens of the language model."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(features, 4 * features)
        self.fc2 = nn.Linear(4 * features, width)
        self.fc3 = nn.Linear(width, width)

    def forward(self, features: Tensor) -> Tensor:
        """(..., features) to (..., width)."""
        return self.fc3(F.gelu(self.fc2(F.gelu(self.fc1(features)))))


class ProprioProjector(nn.Module):
    """The robot's state as one token of the language model."""

    def __init__(self, numbers: int, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(numbers, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, state: Tensor) -> Tensor:
        """(B, numbers) to (B, width)."""
        return self.fc2(F.gelu(self.fc1(state)))


class ResidualBlock(nn.Module):
    """A layer beside which its input passes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ffn = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """(..., width), both."""
        return x + self.ffn(x)


class ResidualPerceptron(nn.Module):
    """The L1 head's layers, in the order and under the names that they are published."""

    def __init__(self, inputs: int, width: int, outputs: int) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(inputs)
        self.fc1 = nn.Linear(inputs, width)
        self.mlp_resnet_blocks = nn.Sequential(ResidualBlock(width), ResidualBlock(width))
        self.layer_norm2 = nn.LayerNorm(width)
        self.fc2 = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) to (..., outputs)."""
        return self.fc2(self.layer_norm2(self.mlp_resnet_blocks(F.relu(self.fc1(self.layer_norm1(x))))))


class L1Head(nn.Module):
    """Actions from what the language model says at their seven tokens; trained by their absolute error."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.model = ResidualPerceptron(ACTION_DIM * width, width, ACTION_DIM)

    def forward(self, answers: Tensor) -> Tensor:
        """Normalised actions (B, T, 7) from answers (B, T * 7, width)."""
        return self.model(answers.unflatten(1, (-1, ACTION_DIM)).flatten(2))


class OpenVLANetwork(nn.Module):
    """The whole network; `action_head` and `proprio_projector` are there or not, as the checkpoint has them.

    The sequence is '<s>', the patches of each image, the state, the prompt, zeros at the places of the actions, '</s>';
    every place sees every other. As a token is foretold at the place before it, the answers begin at the prompt's end.
    """

    def __init__(self, config: OpenVLAConfig, slots: int, l1_head: bool = False, state_dim: int = 0) -> None:
        """Makes it with fresh weights.

        Args:
            slots: tokens of a chunk. l1_head: whether it has one. state_dim: numbers of the state; 0 sees none.
        """
        super().__init__()
        self.config, self.slots = config, slots
        self.vision_backbone = FusedVision(config)
        self.projector = Projector(config.dino.width + config.siglip.width, config.width)
        self.language_model = LlamaForCausalLM(LlamaConfig(**config.llama))
        self.action_head = L1Head(config.width) if l1_head else None
        self.proprio_projector = ProprioProjector(state_dim, config.width) if state_dim else None

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.projector.fc1.weight.device

    def forward(self, inputs: Inputs) -> Tensor:
        """Answers (B, slots, width) of the language model's last layer."""
        embed = self.language_model.get_input_embeddings()
        words, lengths = embed(inputs.words), inputs.lengths
        patches = self.projector(self.vision_backbone(inputs.images.flatten(0, 1)))
        seen = [words[:, :1], patches.view(len(words), -1, self.config.width)]
        if self.proprio_projector is not None:
            if inputs.state is None:
                raise ValueError("this network sees the robot's state")
            seen.append(self.proprio_projector(inputs.state.to(words.dtype))[:, None])
        head = torch.cat(seen, 1)
        place = torch.arange(words.shape[1] + self.slots, device=words.device)
        tail = F.pad(words[:, 1:], (0, 0, 0, self.slots + 1)) * (place < lengths[:, None] - 1)[..., None]
        end = place == lengths[:, None] - 1 + self.slots
        stop = embed(torch.tensor(STOP, device=words.device))
        sequence = torch.cat([head, torch.where(end[..., None], stop, tail)], 1)
        visible = F.pad(place < lengths[:, None] + self.slots, (head.shape[1], 0), value=True)
        # Additive and of four dimensions, a mask is taken as it is: without one the language model would be causal.
        mask = torch.zeros_like(visible, dtype=words.dtype).masked_fill(~visible, torch.finfo(words.dtype).min)
        mask = mask[:, None, None].expand(-1, 1, sequence.shape[1], -1)
        output = self.language_model.model(inputs_embeds=sequence, attention_mask=mask, use_cache=False)
        asked = head.shape[1] + lengths[:, None] - 2 + torch.arange(self.slots, device=words.device)
        return output.last_hidden_state[torch.arange(len(words), device=words.device)[:, None], asked]

    def logits(self, answers: Tensor) -> Tensor:
        """Scores float32 (B, slots, 256) of the action tokens alone, as SimpleVLA-RL cuts them.

        OFT's own evaluation looks for the best of all 32064; of a policy that says no words, that is the same.
        """
        first = self.config.first_action_token
        return self.language_model.lm_head(answers)[..., first : first + BINS].float()
