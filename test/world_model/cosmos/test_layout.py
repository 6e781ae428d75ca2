"""Cosmos' published layouts: name by name and shape by shape, in its own names, written down from upstream's code.

No published weights are at hand here. What is proved: every name and shape of the layout, at full size, is the model's,
and a file of that layout is loaded whole. What is not: that the weights themselves give good pictures.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_cosmos_transformer_checkpoint_to_diffusers

from wvl_ros.errors import CheckpointError
from wvl_ros.world_model.cosmos.layout import from_diffusers, from_published, rename
from wvl_ros.world_model.cosmos.model import CosmosWorldModel
from wvl_ros.world_model.cosmos.transformer import ActionCosmosTransformer
from wvl_ros.world_model.large import load_large, save_large

OURS = ("heads.", "tracking.", "state_embedder.")


def _layout(width: int, head: int, layers: int, text: int, rank: int, actions: int) -> dict[str, tuple[int, ...]]:
    """The names and shapes of upstream's network `ActionConditionedMinimalV1LVGDiT`."""
    shapes: dict[str, tuple[int, ...]] = {
        "x_embedder.proj.1.weight": (width, (16 + 1 + 1) * 2 * 2),
        "t_embedder.1.linear_1.weight": (width, width),
        "t_embedder.1.linear_2.weight": (3 * width, width),
        "t_embedding_norm.weight": (width,),
        "final_layer.linear.weight": (2 * 2 * 16, width),
        "final_layer.adaln_modulation.1.weight": (rank, width),
        "final_layer.adaln_modulation.2.weight": (2 * width, rank),
    }
    for i in range(layers):
        for kind, inputs in (("self_attn", width), ("cross_attn", text)):
            for projection, size in (("q_proj", width), ("k_proj", inputs), ("v_proj", inputs), ("output_proj", width)):
                shapes[f"blocks.{i}.{kind}.{projection}.weight"] = (width, size)
            shapes |= {f"blocks.{i}.{kind}.{norm}.weight": (head,) for norm in ("q_norm", "k_norm")}
        shapes[f"blocks.{i}.mlp.layer1.weight"] = (4 * width, width)
        shapes[f"blocks.{i}.mlp.layer2.weight"] = (width, 4 * width)
        for part in ("self_attn", "cross_attn", "mlp"):
            shapes[f"blocks.{i}.adaln_modulation_{part}.1.weight"] = (rank, width)
            shapes[f"blocks.{i}.adaln_modulation_{part}.2.weight"] = (3 * width, rank)
    for name, size in (("action_embedder_B_D", width), ("action_embedder_B_3D", 3 * width)):
        shapes[f"{name}.fc1.weight"], shapes[f"{name}.fc1.bias"] = (4 * width, actions), (4 * width,)
        shapes[f"{name}.fc2.weight"], shapes[f"{name}.fc2.bias"] = (size, 4 * width), (size,)
    return shapes


def _published(actions: bool = True) -> dict[str, torch.Tensor]:
    """A checkpoint as upstream saves it, with its tables and counters."""
    generator = torch.Generator().manual_seed(5)
    shapes = _layout(32, 16, 2, 8, 4, 28)
    weights = {
        f"net.{name}": torch.randn(shape, generator=generator)
        for name, shape in shapes.items()
        if actions or not name.startswith("action_")
    }
    extra = {"net.pos_embedder.seq": torch.arange(4.0), "net.accum_iteration": torch.zeros(1)}
    return weights | extra | {"net.pos_embedder.dim_spatial_range": torch.zeros(2)}


def _tiny(model: CosmosWorldModel) -> dict[str, object]:
    return {name: value for name, value in model.config.items() if not name.startswith("_")}


def test_every_name_and_shape_at_full_size() -> None:
    with torch.device("meta"):
        own = {name: tuple(tensor.shape) for name, tensor in ActionCosmosTransformer().state_dict().items()}
    layout = _layout(width=2048, head=128, layers=28, text=1024, rank=256, actions=7 * 12)
    renamed = rename({f"net.{name}": torch.empty(shape, device="meta") for name, shape in layout.items()})
    assert own == {name: tuple(tensor.shape) for name, tensor in renamed.items()}
    base = {name: shape for name, shape in own.items() if not name.startswith("action_embedder")}
    assert len(base) == 567
    assert len(own) == 567 + 8
    assert sum(torch.Size(shape).numel() for shape in base.values()) == 1_956_413_440


def test_the_names_are_those_of_diffusers_converter() -> None:
    theirs = convert_cosmos_transformer_checkpoint_to_diffusers(_published())
    ours = rename(_published())
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_an_action_conditioned_checkpoint_is_loaded_whole(
    make_cosmos: Callable[..., CosmosWorldModel], tmp_path: Path
) -> None:
    source = make_cosmos(seed=1)
    source.vae.save_pretrained(tmp_path / "vae")
    note = {f"net.blocks.{i}.self_attn._extra_state": io.BytesIO(text) for i, text in enumerate((b"", b"notes"))}
    average = {name.replace("net.", "net_ema.", 1): tensor + 1 for name, tensor in _published().items()}
    torch.save(_published() | note | average, tmp_path / "model-480p-4fps.pt")
    for averaged, weights in ((False, _published()), (True, average)):
        model, account = from_published(
            tmp_path / "model-480p-4fps.pt", tmp_path / "vae", averaged=averaged, **_tiny(source)
        )
        for name, tensor in rename(weights, averaged=averaged).items():
            assert torch.equal(model.transformer.state_dict()[name], tensor)
        for name, tensor in source.vae.state_dict().items():
            assert torch.equal(model.vae.state_dict()[name], tensor)
        assert all(name.startswith(OURS) for name in account.fresh)


def test_the_plain_video_model_lacks_actions_only(make_cosmos: Callable[..., CosmosWorldModel], tmp_path: Path) -> None:
    source = make_cosmos(seed=1)
    source.vae.save_pretrained(tmp_path / "vae")
    weights = _published(actions=False)
    torch.save(weights, tmp_path / "model.pt")
    account = from_published(tmp_path / "model.pt", tmp_path / "vae", **_tiny(source))[1]
    assert "transformer.action_embedder_B_D" in account.sentence()
    del weights["net.blocks.1.mlp.layer2.weight"]
    torch.save(weights | {"net.logvar.0.freqs": torch.zeros(3)}, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"transformer_blocks.1.ff.net.2.*unknown \(transformer.logvar"):
        from_published(tmp_path / "model.pt", tmp_path / "vae", **_tiny(source))
    with pytest.raises(CheckpointError, match="no running average"):
        from_published(tmp_path / "model.pt", tmp_path / "vae", averaged=True)


def test_folders_of_diffusers_and_our_own(make_cosmos: Callable[..., CosmosWorldModel], tmp_path: Path) -> None:
    source = make_cosmos(seed=1)
    source.vae.save_pretrained(tmp_path / "theirs" / "vae")
    source.transformer.save_pretrained(tmp_path / "theirs" / "transformer", max_shard_size="40KB")
    config = _tiny(source) | {"vae_config": None, "transformer_config": None}
    model, _ = from_diffusers(tmp_path / "theirs", **config)
    save_large(model, tmp_path / "ours", torch.float32)
    again = load_large(json.loads((tmp_path / "ours/config.json").read_text()), tmp_path / "ours", "cpu")
    for name, tensor in source.transformer.state_dict().items():
        assert torch.equal(again.transformer.state_dict()[name], tensor)
    (tmp_path / "theirs" / "vae" / "config.json").unlink()
    with pytest.raises(CheckpointError, match="config"):
        from_diffusers(tmp_path / "theirs", **config)
