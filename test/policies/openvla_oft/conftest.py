"""A tiny OpenVLA-OFT checkpoint with random weights, in the published layout; no published weights are at hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor

from wvl_ros.policies.openvla_oft import config
from wvl_ros.policies.openvla_oft.layout import published_shapes
from wvl_ros.policies.openvla_oft.network import L1Head, ProprioProjector
from wvl_ros.worlds import droid

DINO, SIGLIP, WIDTH = config.Tower(16, 3, 2, 64, registers=4), config.Tower(24, 4, 2, 40), 32
TEXT = "In : What action should the robot take to ? Out put push red blue cube on disk"
CONFIG: dict[str, Any] = {
    "architectures": ["OpenVLAForActionPrediction"],
    "arch_specifier": "no-align+fused-gelu-mlp",
    "auto_map": {"AutoConfig": "configuration_prismatic.OpenVLAConfig"},
    "image_resize_strategy": "resize-naive",
    "image_sizes": [28, 28],
    "llm_max_length": 64,
    "model_type": "openvla",
    "n_action_bins": 256,
    "pad_to_multiple_of": 64,
    "timm_model_ids": ["tiny_dino", "tiny_siglip"],
    "timm_override_act_layers": [None, None],
    "torch_dtype": "float32",
    "use_fused_vision_backbone": True,
    "text_config": {
        "model_type": "llama",
        "vocab_size": 32064,
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
    },
}


@pytest.fixture(autouse=True)
def tiny_towers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two more vision transformers that a configuration may name."""
    monkeypatch.setitem(config.TOWERS, "tiny_dino", DINO)
    monkeypatch.setitem(config.TOWERS, "tiny_siglip", SIGLIP)


def _statistics() -> dict[str, Any]:
    """Of a data set, as published: 7 numbers an action, 8 a state."""
    mask = [True] * 6 + [False]
    action = {
        "q01": [-0.6, -0.7, -0.8, -0.1, -0.15, -0.3, 0.0],
        "q99": [0.8, 0.9, 0.9, 0.1, 0.2, 0.3, 1.0],
        "mask": mask,
    }
    proprio = {"q01": [-0.4, -0.3, 0.4, 1.9, -2.9, -1.2, 0.0, -0.04], "q99": [0.6, 0.3, 1.3, 3.3, 2.7, 0.7, 0.04, 0.0]}
    return {"libero_10_no_noops": {"action": action, "proprio": proprio, "num_transitions": 7}}


def _tokenizer() -> Tokenizer:
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {word: 3 + i for i, word in enumerate(TEXT.split())}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def _weights(seed: int, dtype: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = config.OpenVLAConfig.from_published(CONFIG, Path())
    found = {}
    for name, shape in published_shapes(sizes).items():
        scale = 0.5 if len(shape) < 2 or "token" in name or "pos" in name else 1.5 / np.prod(shape[1:]) ** 0.5
        if name.endswith("embed_tokens.weight"):
            scale = 0.5
        norm = "norm" in name and name.endswith("weight")
        found[name] = (torch.randn(shape, generator=generator) * scale + norm).to(dtype)
    return found


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """Makes a published folder: two files of weights with their index, pickled side files, no `.py`."""

    def make(
        name: str = "published",
        *,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        l1: bool = False,
        proprio: bool = False,
        **settings: Any,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        weights = _weights(seed, dtype)
        names = list(weights)
        files = {"model-00001-of-00002.safetensors": names[:100], "model-00002-of-00002.safetensors": names[100:]}
        for file, held in files.items():
            save_file({key: weights[key] for key in held}, folder / file, metadata={"format": "pt"})
        index = {"metadata": {}, "weight_map": {key: file for file, held in files.items() for key in held}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        (folder / "config.json").write_text(json.dumps(CONFIG))
        (folder / "dataset_statistics.json").write_text(json.dumps(_statistics()))
        _tokenizer().save(str(folder / "tokenizer.json"))
        torch.manual_seed(seed)
        parts = {"action_head": L1Head(WIDTH)} if l1 else {}
        parts |= {"proprio_projector": ProprioProjector(8, WIDTH)} if proprio else {}
        for part, module in parts.items():
            state = {f"module.{key}": tensor.to(dtype) for key, tensor in module.state_dict().items()}
            torch.save(state, folder / f"{part}--150000_checkpoint.pt")
        chosen = {"convention": "libero", "cameras": list(droid.CAMERAS[:1])} | settings
        (folder / "wvl_policy.json").write_text(json.dumps(chosen))
        return folder

    return make


@pytest.fixture
def make_observation() -> Callable[..., dict[str, np.ndarray]]:
    """Makes an observation of random pixels."""

    def make(seed: int = 0, height: int = 40, width: int = 56) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        images = {camera: rng.integers(0, 255, (height, width, 3), dtype=np.uint8) for camera in droid.CAMERAS}
        pose = droid.forward_kinematics(droid.RESET_JOINTS + rng.uniform(-0.1, 0.1, 7))
        return images | {"cartesian_position": pose, "gripper_position": np.array([0.2])}

    return make
