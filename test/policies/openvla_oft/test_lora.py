"""LoRA on OpenVLA-OFT: our adapters and those published, put on, saved and merged."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from wvl_ros.errors import CheckpointError, ConfigError
from wvl_ros.policies.openvla_oft.policy import OpenVLAPolicy

MakeFolder = Callable[..., Path]
MakeObservation = Callable[..., dict[str, np.ndarray]]
TEXT = "put red cube on disk"
# What `target_modules` names in the adapter of moojink/openvla-7b-oft-finetuned-libero-10.
TARGETS = re.compile(r"q|k?v|qkv|proj|fc[123]|[qkvo]_proj|(gate|up|down)_proj|lm_head")


def _stir(policy: OpenVLAPolicy) -> None:
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in policy.network.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.05)


def _answers(policy: OpenVLAPolicy, observation: dict[str, np.ndarray]) -> torch.Tensor:
    with torch.no_grad():
        return policy.network.logits(policy.network(policy.inputs([observation], [TEXT])))


def test_an_adapter_changes_nothing_until_it_learns_and_merges_exactly(
    make_folder: MakeFolder, make_observation: MakeObservation, tmp_path: Path
) -> None:
    folder, observation = make_folder(), make_observation()
    policy = OpenVLAPolicy.from_pretrained(folder)
    names = set(policy.network.state_dict())
    plain = _answers(policy, observation)
    trained = policy.add_lora()
    torch.testing.assert_close(_answers(policy, observation), plain)
    layers = 3 * 6 + 4 * 6 + 3 + 2 * 7 + 1  # of the two vision transformers, the projector and the language model
    assert len(trained) == 2 * layers
    assert {min(parameter.shape) for parameter in trained} <= {16, 24, 32}  # the rank, or a tiny layer's width
    _stir(policy)
    stirred = _answers(policy, observation)
    assert float((stirred - plain).abs().max()) > 0.1
    with pytest.raises(ConfigError, match="Merge the adapter"):
        policy.save_pretrained(tmp_path / "whole")
    with pytest.raises(ConfigError, match="has an adapter already"):
        policy.add_lora()
    policy.save_lora(tmp_path / "adapter")
    policy.merge_lora()
    torch.testing.assert_close(_answers(policy, observation), stirred, atol=1e-4, rtol=1e-4)
    assert set(policy.network.state_dict()) == names
    policy.save_pretrained(tmp_path / "whole")
    torch.testing.assert_close(
        _answers(OpenVLAPolicy.from_pretrained(tmp_path / "whole"), observation), stirred, atol=1e-4, rtol=1e-4
    )
    again = OpenVLAPolicy.from_pretrained(folder)
    again.load_lora(tmp_path / "adapter")
    torch.testing.assert_close(_answers(again, observation), stirred)
    with pytest.raises(ConfigError, match="no adapter"):
        policy.merge_lora()
    with pytest.raises(ConfigError, match="at least 1"):
        policy.add_lora(rank=0)


def test_heads_of_a_checkpoint_are_trained_whole(make_folder: MakeFolder) -> None:
    policy = OpenVLAPolicy.from_pretrained(make_folder(l1=True, proprio=True))
    trained = {id(parameter) for parameter in policy.add_lora(rank=2)}
    for name, parameter in policy.network.named_parameters():
        learns = "lora_" in name or name.startswith(("action_head.", "proprio_projector."))
        assert (id(parameter) in trained) == learns, name


def _published_adapter(base: Path, folder: Path, rank: int = 4, alpha: int = 2) -> dict[str, torch.Tensor]:
    """Writes one under timm's names; returns the published weights with it added, by plain arithmetic."""
    generator = torch.Generator().manual_seed(5)
    whole = {name: t for file in base.glob("model*.safetensors") for name, t in load_file(file).items()}
    matrices = {}
    for name, weight in whole.items():
        module = name.removesuffix(".weight")
        if name.endswith(".weight") and weight.ndim == 2 and TARGETS.fullmatch(module.split(".")[-1]):
            a, b = (
                torch.randn(s, generator=generator) * 0.1 for s in ((rank, weight.shape[1]), (weight.shape[0], rank))
            )
            matrices[f"base_model.model.{module}.lora_A.weight"] = a
            matrices[f"base_model.model.{module}.lora_B.weight"] = b
            whole[name] = weight + b @ a * alpha / rank
    matrices["base_model.model.language_model.lm_head.base_layer.weight"] = torch.zeros(2, 2)
    folder.mkdir(parents=True)
    save_file(matrices, folder / "adapter_model.safetensors")
    table = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "modules_to_save": None}
    (folder / "adapter_config.json").write_text(json.dumps(table))
    return whole


def test_a_published_adapter_on_its_base(make_folder: MakeFolder, tmp_path: Path) -> None:
    base, run = make_folder("base"), tmp_path / "run"
    expected = _published_adapter(base, run / "lora_adapter")
    for name in ("dataset_statistics.json", "tokenizer.json"):
        (run / name).write_bytes((base / name).read_bytes())
    settings = json.loads((base / "wvl_policy.json").read_text())
    (run / "wvl_policy.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match="an adapter and no model; name the folder"):
        OpenVLAPolicy.from_pretrained(run)
    (run / "wvl_policy.json").write_text(json.dumps(settings | {"base": str(base)}))
    policy = OpenVLAPolicy.from_pretrained(run)
    policy.save_pretrained(tmp_path / "merged")
    merged = load_file(tmp_path / "merged/model.safetensors")
    for name, tensor in expected.items():
        if "attn_pool" not in name:  # which nothing depends on
            torch.testing.assert_close(merged[name], tensor, atol=1e-5, rtol=1e-5)
    assert json.loads((tmp_path / "merged/wvl_policy.json").read_text())["base"] == ""


def test_bad_adapters_are_named(make_folder: MakeFolder, tmp_path: Path) -> None:
    base, folder = make_folder(), tmp_path / "adapter"
    _published_adapter(base, folder)
    weights = load_file(folder / "adapter_model.safetensors")
    table = json.loads((folder / "adapter_config.json").read_text())
    key = "base_model.model.projector.fc1.lora_A.weight"
    for change, words in (
        ({key: None}, f"'{key}' is missing"),
        ({key: torch.zeros(4, 3)}, "another shape"),
        ({"base_model.model.projector.fc1.weight": torch.zeros(1)}, "no matrix of LoRA"),
    ):
        found = {name: tensor for name, tensor in (weights | change).items() if tensor is not None}
        save_file(found, folder / "adapter_model.safetensors")
        policy = OpenVLAPolicy.from_pretrained(base)
        with pytest.raises(CheckpointError, match=words):
            policy.load_lora(folder)
        assert not any("lora" in name for name in policy.network.state_dict())
    (folder / "adapter_config.json").write_text(json.dumps(table | {"use_dora": True}))
    with pytest.raises(CheckpointError, match=r"no plain LoRA: its adapter_config\.json sets use_dora"):
        OpenVLAPolicy.from_pretrained(base).load_lora(folder)
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="damaged"):
        OpenVLAPolicy.from_pretrained(base).load_lora(folder)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(CheckpointError, match="no adapter as safetensors"):
        OpenVLAPolicy.from_pretrained(base).load_lora(folder)
