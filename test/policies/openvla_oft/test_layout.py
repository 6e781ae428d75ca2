"""OpenVLA-OFT's published layout: name by name and shape by shape, there and back.

No published weights are at hand here. What is proved: at full size our names and shapes are the published ones (their
number and their bytes are those of `model.safetensors.index.json` of moojink/openvla-7b-oft-finetuned-libero-10, whose
982 names were compared once), and a tiny checkpoint of that layout is loaded whole, to the bit. What is not: that the
weights themselves make a good policy.
"""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import init_empty_weights
from safetensors.torch import load_file, save_file

from wvl_ros.errors import CheckpointError, ConfigError
from wvl_ros.policies.openvla_oft.config import OpenVLAConfig
from wvl_ros.policies.openvla_oft.layout import modules, pieces, published_shapes
from wvl_ros.policies.openvla_oft.network import OpenVLANetwork
from wvl_ros.policies.openvla_oft.policy import OpenVLAPolicy

MakeFolder = Callable[..., Path]
FULL = {
    "model_type": "openvla",
    "timm_model_ids": ["vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"],
    "image_sizes": [224, 224],
    "text_config": {"model_type": "llama", "pad_token_id": 32000, "torch_dtype": "bfloat16", "vocab_size": 32064},
}
DINO, SIGLIP = "vision_backbone.featurizer.", "vision_backbone.fused_featurizer."


def _published(folder: Path) -> dict[str, torch.Tensor]:
    files = sorted(folder.glob("model*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def test_every_name_and_shape_at_full_size() -> None:
    config = OpenVLAConfig.from_published(FULL, Path())
    shapes = published_shapes(config)
    assert len(shapes) == 982
    assert 2 * sum(math.prod(shape) for shape in shapes.values()) == 15_082_474_368  # total_size, of bfloat16
    with init_empty_weights(include_buffers=False):
        network = OpenVLANetwork(config, slots=56, l1_head=True, state_dim=8)
    own = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    assert not any(buffer.is_meta for buffer in network.buffers())
    ours = [name for piece in pieces(config) for name in piece.ours]
    assert sorted(name for piece in pieces(config) for name in piece.published) == sorted(shapes)
    assert len(set(ours)) == len(ours)
    rest = {name for name in own.keys() - set(ours) if not name.startswith(("action_head.", "proprio_projector."))}
    assert rest == {f"{DINO}embeddings.mask_token"}
    for piece in pieces(config):
        row = 1024 if piece.published == (f"{DINO}pos_embed",) else 0  # the class token's
        ours_count = sum(math.prod(own[name]) for name in piece.ours)
        assert ours_count == sum(math.prod(shapes[name]) for name in piece.published) + row, piece
        if len(piece.ours) == len(piece.published) == 1 and not piece.published[0].endswith("pos_embed"):
            assert own[piece.ours[0]] == shapes[piece.published[0]], piece
    heads = {name: shape for name, shape in own.items() if name.startswith(("action_head.", "proprio_projector."))}
    width, inputs = 4096, 7 * 4096
    expected = {"model.layer_norm1": (inputs,), "model.fc1": (width, inputs), "model.layer_norm2": (width,)}
    expected |= {"model.fc2": (7, width)}
    expected |= {f"model.mlp_resnet_blocks.{i}.ffn.{n}": ((width,), (width, width))[n] for i in (0, 1) for n in (0, 1)}
    wanted = {f"action_head.{name}": shape for name, shape in expected.items()}
    wanted |= {"proprio_projector.fc1": (width, 8), "proprio_projector.fc2": (width, width)}
    assert heads == {f"{n}.weight": s for n, s in wanted.items()} | {f"{n}.bias": s[:1] for n, s in wanted.items()}
    # The published files' sizes, less some kilobytes of names: the first is bfloat16, the second float32.
    assert 2 * sum(math.prod(s) for n, s in heads.items() if n.startswith("action_head")) == 302_242_674 - 7_012
    assert 4 * sum(math.prod(s) for n, s in heads.items() if n.startswith("proprio")) == 67_275_256 - 2_552


def test_a_published_checkpoint_is_loaded_key_by_key(make_folder: MakeFolder) -> None:
    folder = make_folder(l1=True, proprio=True)
    published, own = _published(folder), OpenVLAPolicy.from_pretrained(folder).network.state_dict()
    for i in range(3):
        block, layer = f"{DINO}blocks.{i}.", f"{DINO}encoder.layer.{i}."
        for kind in ("weight", "bias"):
            for name, part in zip("qkv", published[f"{block}attn.qkv.{kind}"].chunk(3), strict=True):
                assert torch.equal(own[f"{layer}attention.{name}_proj.{kind}"], part)
        for n in (1, 2):
            assert torch.equal(own[f"{layer}layer_scale{n}.lambda1"], published[f"{block}ls{n}.scale_factor"])
    positions = own[f"{DINO}embeddings.position_embeddings"]
    assert torch.equal(positions[:, 1:], published[f"{DINO}pos_embed"])
    assert not positions[:, 0].any()
    assert torch.equal(own[f"{SIGLIP}embeddings.position_embedding.weight"], published[f"{SIGLIP}pos_embed"][0])
    config = OpenVLAConfig.from_published(json.loads((folder / "config.json").read_text()), folder)
    for module, ours in modules(config).items():
        for kind in ("weight", "bias"):
            assert torch.equal(torch.cat([own[f"{name}.{kind}"] for name in ours]), published[f"{module}.{kind}"])
    same = [name for name in published if name.startswith(("language_model.", "projector."))]
    assert len(same) == 2 * 9 + 3 + 6
    assert all(torch.equal(own[name], published[name]) for name in same)
    for part in ("action_head", "proprio_projector"):
        for name, tensor in torch.load(folder / f"{part}--150000_checkpoint.pt", weights_only=True).items():
            assert torch.equal(own[f"{part}.{name.removeprefix('module.')}"], tensor)
    assert not any(tensor.is_meta for tensor in own.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_round_trip_is_exact(make_folder: MakeFolder, tmp_path: Path, dtype: torch.dtype) -> None:
    folder = make_folder(l1=True, proprio=True, dtype=dtype)
    policy = OpenVLAPolicy.from_pretrained(folder)
    policy.save_pretrained(tmp_path / "saved", shard=3_000_000)
    before, after = _published(folder), _published(tmp_path / "saved")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) and after[name].dtype == dtype for name in before)
    index = json.loads((tmp_path / "saved/model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in after.values())
    assert len(set(index["weight_map"].values())) > 1
    again = OpenVLAPolicy.from_pretrained(tmp_path / "saved")
    for name, tensor in policy.network.state_dict().items():
        assert torch.equal(again.network.state_dict()[name], tensor), name
    assert again.settings == policy.settings
    for name in ("tokenizer.json", "dataset_statistics.json"):
        assert json.loads((tmp_path / "saved" / name).read_text()) == json.loads((folder / name).read_text())
    assert not list((tmp_path / "saved").glob("*.pt"))
    with pytest.raises(ConfigError, match="of another checkpoint"):
        policy.save_pretrained(folder)
    whole = OpenVLAPolicy.from_pretrained(folder, dtype=torch.float32)
    assert {tensor.dtype for tensor in whole.network.state_dict().values()} == {torch.float32}
    whole.save_pretrained(tmp_path / "one")
    assert (tmp_path / "one/model.safetensors").is_file()


def test_what_the_class_token_learned_of_its_place_is_not_lost(make_folder: MakeFolder, tmp_path: Path) -> None:
    policy = OpenVLAPolicy.from_pretrained(make_folder())
    embeddings = policy.network.vision_backbone.featurizer.embeddings
    with torch.no_grad():
        embeddings.position_embeddings[:, 0] += 0.25
    images = torch.randint(0, 255, (1, 3, 28, 28), dtype=torch.uint8)
    before = policy.network.vision_backbone(images)
    policy.save_pretrained(tmp_path / "saved")
    after = OpenVLAPolicy.from_pretrained(tmp_path / "saved").network.vision_backbone(images)
    torch.testing.assert_close(after, before)


def test_weights_that_do_not_fit_are_named(make_folder: MakeFolder) -> None:
    folder = make_folder()
    path = folder / "model-00001-of-00002.safetensors"
    index = folder / "model.safetensors.index.json"
    whole = load_file(path)
    key = f"{DINO}blocks.0.attn.qkv.weight"
    for change, words in (
        ({key: None}, rf"'{key}' is missing\."),
        ({"strange.weight": torch.zeros(1)}, r"'strange.weight' is unknown\."),
        ({key: torch.zeros(3, 2)}, rf"'{key}' has another shape: \(3, 2\) instead of \(48, 16\)\."),
        ({f"{DINO}blocks.0.block.norm1.weight": torch.zeros(1)}, "FiLM"),
    ):
        save_file({name: tensor for name, tensor in (whole | change).items() if tensor is not None}, path)
        with pytest.raises(CheckpointError, match=words):
            OpenVLAPolicy.from_pretrained(folder)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(CheckpointError, match="damaged"):
        OpenVLAPolicy.from_pretrained(folder)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"no weights '.*model-00001-of-00002.safetensors'"):
        OpenVLAPolicy.from_pretrained(folder)
    index.write_text("{")
    with pytest.raises(CheckpointError, match=r"index .* is damaged"):
        OpenVLAPolicy.from_pretrained(folder)


class _Harmful:
    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("harm"),))


def test_nothing_in_a_checkpoint_is_run(
    make_folder: MakeFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = make_folder(l1=True)
    path = folder / "action_head--150000_checkpoint.pt"
    good = path.read_bytes()
    torch.save({"module.model.fc1.bias": _Harmful()}, path)
    with pytest.raises(CheckpointError, match="run code"):
        OpenVLAPolicy.from_pretrained(folder)
    path.write_bytes(pickle.dumps(_Harmful(), protocol=2))
    with pytest.raises(CheckpointError):
        OpenVLAPolicy.from_pretrained(folder)
    path.write_bytes(good[: len(good) // 2])
    with pytest.raises(CheckpointError, match="damaged"):
        OpenVLAPolicy.from_pretrained(folder)
    path.write_bytes(good)
    (folder / "action_head--2_checkpoint.pt").write_bytes(good)
    with pytest.raises(CheckpointError, match="several of action_head"):
        OpenVLAPolicy.from_pretrained(folder)
    (folder / "action_head--2_checkpoint.pt").unlink()
    (folder / "model-00001-of-00002.safetensors").write_bytes(good)
    with pytest.raises(CheckpointError, match="is a pickle"):
        OpenVLAPolicy.from_pretrained(folder)
    assert not (tmp_path / "harm").exists()


def test_a_head_of_another_size_is_named(make_folder: MakeFolder) -> None:
    folder = make_folder(proprio=True, convention="droid")
    with pytest.raises(CheckpointError, match=r"proprio_projector.fc1.weight' has another shape: \(32, 8\)"):
        OpenVLAPolicy.from_pretrained(folder)
