"""Ctrl-World's and Stable Video Diffusion's published layouts: name by name and shape by shape.

No published weights are at hand here. What is proved: every name and shape of the layout, at full size, is the model's,
and a file of that layout is loaded whole. What is not: that the weights themselves give good pictures.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers.models import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from wvl_ros.errors import CheckpointError
from wvl_ros.world_model.large import load_large, save_large
from wvl_ros.world_model.published import fit
from wvl_ros.world_model.svd.layout import from_ctrl_world, from_svd
from wvl_ros.world_model.svd.model import VAE, SVDWorldModel

OURS = ("heads.", "tracking.")


def _published(model: SVDWorldModel) -> dict[str, torch.Tensor]:
    """What Ctrl-World would have saved of such a model, its image encoder included."""
    weights = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(OURS)}
    return weights | {"image_encoder.visual_projection.weight": torch.zeros(4, 4)}


def _tiny(model: SVDWorldModel) -> dict[str, object]:
    return {name: value for name, value in model.config.items() if not name.startswith("_")}


def test_every_name_and_shape_at_full_size() -> None:
    with torch.device("meta"):
        model = SVDWorldModel()
        expected = {f"unet.{n}": t.shape for n, t in UNetSpatioTemporalConditionModel().state_dict().items()}
        assert len(expected) == 1428
        assert sum(shape.numel() for shape in expected.values()) == 1_524_623_082
        expected |= {f"vae.{n}": t.shape for n, t in AutoencoderKLTemporalDecoder(**VAE).state_dict().items()}
        clip = CLIPTextModelWithProjection(CLIPTextConfig(projection_dim=512))
        expected |= {f"text_encoder.{n}": t.shape for n, t in clip.state_dict().items()}
    sizes = {0: (1024, 7), 2: (1024, 1024), 4: (1024, 1024)}  # 7 > 1024 > 1024 > 1024
    for layer, shape in sizes.items():
        expected[f"action_encoder.action_encode.{layer}.weight"] = torch.Size(shape)
        expected[f"action_encoder.action_encode.{layer}.bias"] = torch.Size(shape[:1])
    own = {name: tensor.shape for name, tensor in model.state_dict().items() if not name.startswith(OURS)}
    assert own == expected
    assert model.noise_shape == (5, 4, 72, 40)
    assert model.unet.config.in_channels == 8


def test_a_ctrl_world_checkpoint_is_loaded_whole(make_svd: Callable[..., SVDWorldModel], tmp_path: Path) -> None:
    source = make_svd(seed=1, text=True)
    torch.save(_published(source), tmp_path / "checkpoint-10000.pt")
    model, account = from_ctrl_world(tmp_path / "checkpoint-10000.pt", **_tiny(source))
    for name, tensor in _published(source).items():
        if not name.startswith("image_encoder."):
            assert torch.equal(model.state_dict()[name], tensor), name
    assert account.left_out == ["image_encoder.visual_projection.weight"]
    assert all(name.startswith(OURS) for name in account.fresh)
    assert account.loaded == len(_published(source)) - 1
    assert "fresh, to be trained (heads, tracking)" in account.sentence()


def test_what_does_not_fit_is_named(make_svd: Callable[..., SVDWorldModel], tmp_path: Path) -> None:
    source = make_svd()
    whole, path = _published(source), tmp_path / "weights.pt"
    for change, words in (
        ({"unet.conv_in.bias": None}, r"1 missing \(unet.conv_in.bias\)"),
        ({"unet.conv_in.strange": torch.zeros(1)}, r"1 unknown \(unet.conv_in.strange\)"),
        ({"unet.conv_in.bias": torch.zeros(7)}, r"unet.conv_in.bias is \(7,\), not \(32,\)"),
    ):
        torch.save({name: tensor for name, tensor in (whole | change).items() if tensor is not None}, path)
        with pytest.raises(CheckpointError, match=words):
            from_ctrl_world(path, **_tiny(source))


class _Harmful:
    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("harm"),))


def test_nothing_in_a_checkpoint_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"unet.conv_in.bias": _Harmful()}, tmp_path / "bad.pt")
    (tmp_path / "old.pt").write_bytes(pickle.dumps(_Harmful()))
    (tmp_path / "cut.pt").write_bytes((tmp_path / "bad.pt").read_bytes()[:100])
    for name in ("bad.pt", "old.pt", "cut.pt", "none.pt"):
        with pytest.raises(CheckpointError):
            from_ctrl_world(tmp_path / name)
    assert not (tmp_path / "harm").exists()


def test_the_folders_it_began_from(make_svd: Callable[..., SVDWorldModel], tmp_path: Path) -> None:
    source = make_svd(seed=1, text=True)
    source.unet.save_pretrained(tmp_path / "svd" / "unet")
    source.vae.save_pretrained(tmp_path / "svd" / "vae")
    source.text_encoder.save_pretrained(tmp_path / "clip")
    config = _tiny(source) | {"unet_config": None, "vae_config": None}
    with pytest.raises(CheckpointError, match="tokenizer"):
        from_svd(tmp_path / "svd", tmp_path / "clip", **config)
    _write_tokenizer(tmp_path / "clip")
    model, account = from_svd(tmp_path / "svd", tmp_path / "clip", **config)
    for part in ("unet", "vae", "text_encoder"):
        for name, tensor in getattr(source, part).state_dict().items():
            assert torch.equal(getattr(model, part).state_dict()[name], tensor)
    assert {name.split(".")[0] for name in account.fresh} == {"action_encoder", "heads", "tracking"}
    different = model.embed(["go left", "go right"])
    assert different.shape == (2, 32)
    assert not torch.allclose(different[0], different[1])
    save_large(model, tmp_path / "ours", torch.float32)
    again = load_large(json.loads((tmp_path / "ours/config.json").read_text()), tmp_path / "ours", "cpu")
    assert torch.allclose(again.embed(["go left", "go right"]), different, atol=1e-5)


def test_our_own_folder(make_svd: Callable[..., SVDWorldModel], tmp_path: Path) -> None:
    model = make_svd(seed=1)
    save_large(model, tmp_path, torch.float32)
    config = json.loads((tmp_path / "config.json").read_text())
    again = load_large(config, tmp_path, "cpu")
    theirs = SVDWorldModel.from_pretrained(tmp_path, use_safetensors=True)
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
        assert torch.equal(theirs.state_dict()[name], tensor)
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="damaged"):
        load_large(config, tmp_path, "cpu")
    weights.unlink()
    (tmp_path / "diffusion_pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(CheckpointError, match="no weights as safetensors"):
        load_large(config, tmp_path, "cpu")
    with pytest.raises(CheckpointError, match="does not describe"):
        load_large(config | {"num_frames": 1}, _with_weights(tmp_path, model), "cpu")


def _with_weights(folder: Path, model: SVDWorldModel) -> Path:
    save_large(model, folder, torch.bfloat16)
    return folder


def test_a_weight_left_on_meta_is_refused(make_svd: Callable[..., SVDWorldModel]) -> None:
    source = make_svd()
    with torch.device("meta"):
        empty = SVDWorldModel(**_tiny(source))
    with pytest.raises(CheckpointError, match="meta device"):
        fit(empty, source.state_dict(), "weights")


def _write_tokenizer(folder: Path) -> None:
    """CLIP's tokenizer with the letters it needs."""
    letters = sorted(set("goleftrightv"))
    words = letters + [f"{letter}</w>" for letter in letters]
    vocabulary = {word: i for i, word in enumerate(words[:29])}
    vocabulary |= {"<|startoftext|>": 30, "<|endoftext|>": 31}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
