"""The network against a second, plain one that works on the published tensors by their published names.

Once it was also compared with OFT's own code (moojink/openvla-oft on transformers 4.40.1 and timm 0.9.16, the causal
mask replaced by zeros, as its fork of transformers does) with tiny random weights at 224x224, two images and the
published tokenizer: prompts and tokens were the same, answers and L1 actions differed by 1e-6.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from wvl_ros.policies.openvla_oft.network import Inputs
from wvl_ros.policies.openvla_oft.policy import OpenVLAPolicy

MakeFolder = Callable[..., Path]
MakeObservation = Callable[..., dict[str, np.ndarray]]
TEXTS = ["put red cube on disk", "push the blue cube", "Put The red robot to the disk on the blue disk"]


class Plain:
    """OpenVLA-OFT in formulas, of one observation at a time: timm's blocks, Llama's layers, both without masks."""

    def __init__(self, folder: Path) -> None:
        self.w = {n: t.double() for f in folder.glob("model*.safetensors") for n, t in load_file(f).items()}
        for path in folder.glob("*.pt"):
            part = path.name.split("--")[0]
            read = torch.load(path, weights_only=True).items()
            self.w |= {f"{part}.{name.removeprefix('module.')}": tensor.double() for name, tensor in read}

    def linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.w[f"{name}.weight"], self.w.get(f"{name}.bias"))

    def norm(self, x: Tensor, name: str, epsilon: float = 1e-6) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.w[f"{name}.weight"], self.w[f"{name}.bias"], epsilon)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(0, 1) for x in (q, k, v))
        scores = q @ k.mT / q.shape[-1] ** 0.5
        return (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)

    def tower(self, pixels: Tensor, name: str, heads: int, blocks: int) -> Tensor:
        """timm's vision transformer up to its last block but one; (patches, D)."""
        x = F.conv2d(pixels, self.w[f"{name}.patch_embed.proj.weight"], self.w[f"{name}.patch_embed.proj.bias"], 14)
        x = x.flatten(1).mT + self.w[f"{name}.pos_embed"][0]
        patches = len(x)
        if f"{name}.cls_token" in self.w:
            x = torch.cat([self.w[f"{name}.cls_token"][0], self.w[f"{name}.reg_token"][0], x])
        for i in range(blocks - 1):
            block = f"{name}.blocks.{i}"
            scales = [self.w.get(f"{block}.ls{n}.scale_factor", torch.ones(())) for n in (1, 2)]
            q, k, v = self.linear(self.norm(x, f"{block}.norm1"), f"{block}.attn.qkv").chunk(3, -1)
            x = x + scales[0] * self.linear(self.attend(q, k, v, heads), f"{block}.attn.proj")
            inner = F.gelu(self.linear(self.norm(x, f"{block}.norm2"), f"{block}.mlp.fc1"))
            x = x + scales[1] * self.linear(inner, f"{block}.mlp.fc2")
        return x[-patches:]

    def rms(self, x: Tensor, name: str) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * self.w[f"{name}.weight"]

    def turn(self, x: Tensor, heads: int) -> Tensor:
        """Rotary positions of (L, heads x D)."""
        x = x.unflatten(-1, (heads, -1))
        half = x.shape[-1] // 2
        angle = torch.arange(len(x))[:, None] / 10000 ** (torch.arange(half) / half)
        cos, sin = angle.cos()[:, None], angle.sin()[:, None]
        a, b = x[..., :half], x[..., half:]
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).flatten(1)

    def llama(self, x: Tensor, heads: int, layers: int) -> Tensor:
        for i in range(layers):
            layer = f"language_model.model.layers.{i}"
            y = self.rms(x, f"{layer}.input_layernorm")
            q, k, v = (self.linear(y, f"{layer}.self_attn.{part}_proj") for part in "qkv")
            seen = self.attend(self.turn(q, heads), self.turn(k, heads), v, heads)
            x = x + self.linear(seen, f"{layer}.self_attn.o_proj")
            y = self.rms(x, f"{layer}.post_attention_layernorm")
            inner = F.silu(self.linear(y, f"{layer}.mlp.gate_proj")) * self.linear(y, f"{layer}.mlp.up_proj")
            x = x + self.linear(inner, f"{layer}.mlp.down_proj")
        return self.rms(x, "language_model.model.norm")

    def answers(self, inputs: Inputs, row: int) -> Tensor:
        """(56, D) for one of a batch."""
        words = inputs.words[row, : inputs.lengths[row]]
        patches = []
        for image in inputs.images[row].double() / 255:
            mean = torch.tensor([0.485, 0.456, 0.406]).double()[:, None, None]
            deviation = torch.tensor([0.229, 0.224, 0.225]).double()[:, None, None]
            dino = self.tower((image - mean) / deviation, "vision_backbone.featurizer", 2, 3)
            siglip = self.tower((image - 0.5) / 0.5, "vision_backbone.fused_featurizer", 2, 4)
            x = torch.cat([dino, siglip], -1)
            x = self.linear(
                F.gelu(self.linear(F.gelu(self.linear(x, "projector.fc1")), "projector.fc2")), "projector.fc3"
            )
            patches.append(x)
        if inputs.state is not None:
            x = F.gelu(self.linear(inputs.state[row].double()[None], "proprio_projector.fc1"))
            patches.append(self.linear(x, "proprio_projector.fc2"))
        embedding = self.w["language_model.model.embed_tokens.weight"]
        asked = torch.zeros(56, embedding.shape[1])
        sequence = torch.cat([embedding[words[:1]], *patches, embedding[words[1:]], asked, embedding[[2]]])
        first = len(sequence) - 1 - 56 - 1  # of the answers: at the prompt's last token
        return self.llama(sequence, 4, 2)[first : first + 56]

    def l1(self, answers: Tensor) -> Tensor:
        """(8, 7) normalised actions."""
        x = F.relu(
            self.linear(self.norm(answers.view(8, -1), "action_head.model.layer_norm1", 1e-5), "action_head.model.fc1")
        )
        for i in (0, 1):
            block = f"action_head.model.mlp_resnet_blocks.{i}.ffn"
            x = x + F.relu(self.linear(self.norm(x, f"{block}.0", 1e-5), f"{block}.1"))
        return self.linear(self.norm(x, "action_head.model.layer_norm2", 1e-5), "action_head.model.fc2")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_it_says_what_the_published_tensors_say(
    make_folder: MakeFolder, make_observation: MakeObservation, attention: str
) -> None:
    folder = make_folder(l1=True, proprio=True, cameras=["exterior_image_1_left", "wrist_image_left"])
    policy = OpenVLAPolicy.from_pretrained(folder)
    network, plain = policy.network, Plain(folder)
    for part in (network.language_model, network.vision_backbone.featurizer, network.vision_backbone.fused_featurizer):
        part.set_attn_implementation(attention)
    inputs = policy.inputs([make_observation(i) for i in range(3)], TEXTS)
    assert len(set(inputs.lengths.tolist())) == 3  # so that two of the three are filled up
    with torch.no_grad():
        answers = network(inputs)
        assert network.action_head is not None
        actions, logits = network.action_head(answers), network.logits(answers)
    for row in range(3):
        expected = plain.answers(inputs, row)
        torch.testing.assert_close(answers[row].double(), expected, atol=2e-5, rtol=2e-5)
        torch.testing.assert_close(actions[row].double(), plain.l1(expected), atol=2e-5, rtol=2e-5)
        tokens = plain.linear(expected, "language_model.lm_head")[:, -320:-64]
        torch.testing.assert_close(logits[row].double(), tokens, atol=2e-5, rtol=2e-5)


def test_a_batch_acts_like_its_rows(make_folder: MakeFolder, make_observation: MakeObservation) -> None:
    policy = OpenVLAPolicy.from_pretrained(make_folder(proprio=True))
    observations = [make_observation(i) for i in range(3)]
    with torch.no_grad():
        together = policy.network(policy.inputs(observations, TEXTS))
        alone = [policy.network(policy.inputs([o], [t])) for o, t in zip(observations, TEXTS, strict=True)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-5)


def test_filling_words_are_never_seen(make_folder: MakeFolder, make_observation: MakeObservation) -> None:
    policy = OpenVLAPolicy.from_pretrained(make_folder())
    inputs = policy.inputs([make_observation()] * 2, TEXTS[1:])
    other = Inputs(inputs.images, inputs.words.clone(), inputs.lengths)
    other.words[0, int(inputs.lengths[0]) :] = 77
    with torch.no_grad():
        torch.testing.assert_close(policy.network(other), policy.network(inputs), atol=0, rtol=0)


def test_words_images_and_state_matter(make_folder: MakeFolder, make_observation: MakeObservation) -> None:
    policy = OpenVLAPolicy.from_pretrained(make_folder(proprio=True))
    observation = make_observation()
    raised = observation | {"cartesian_position": observation["cartesian_position"] + [0, 0, 0.1, 0, 0, 0]}
    darker = observation | {"exterior_image_1_left": observation["exterior_image_1_left"] // 2}
    seen = [observation, raised, darker, observation]
    with torch.no_grad():
        base, *others = policy.network(policy.inputs(seen, [TEXTS[0]] * 3 + [TEXTS[0].replace("red", "blue")]))
    assert all(float((base - other).abs().max()) > 1e-3 for other in others)
