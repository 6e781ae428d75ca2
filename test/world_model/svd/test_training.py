"""The loss, and LoRA: saved, loaded, fused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from wvl_ros.errors import CheckpointError
from wvl_ros.world_model.heads import FrameOutput, Truth, head_losses
from wvl_ros.world_model.lora import add_lora, fuse_lora, load_lora, save_lora
from wvl_ros.world_model.svd.losses import Batch, loss
from wvl_ros.world_model.svd.model import SVDWorldModel


def _batch(model: SVDWorldModel) -> Batch:
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(2, 6, *model.noise_shape[1:], generator=generator)
    poses = torch.rand(2, 6, 7, generator=generator)
    state = torch.rand(2, 2, 10, generator=generator)
    truth = Truth(state, state + 0.01, torch.tensor([[0, 1], [0, 0]]), torch.tensor([[1, 1], [1, 0]]))
    return Batch(latents, poses, model.embed(["", ""]), truth)


def test_one_loss_trains_the_whole_network(make_svd: Callable[..., SVDWorldModel]) -> None:
    model = make_svd()
    batch = _batch(model)
    parts = loss(model, batch, generator=torch.Generator().manual_seed(1))
    again = loss(model, batch, generator=torch.Generator().manual_seed(1))
    assert parts["loss"] == again["loss"]
    assert torch.isfinite(torch.stack(list(parts.values()))).all()
    assert parts["loss"] > parts["image"]
    parts["loss"].backward()
    for part in (model.unet.conv_in, model.action_encoder.action_encode[0], model.heads.out[-1]):
        assert part.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in model.vae.parameters())


def test_frames_without_labels_and_noise_without_content_count_for_nothing() -> None:
    out = FrameOutput(torch.tensor([[3.0, -3.0]]), torch.zeros(1, 2, 10))
    known = Truth(torch.zeros(1, 2, 10), torch.zeros(1, 2, 10), torch.tensor([[1.0, 1.0]]), torch.tensor([[1, 0]]))
    scale = torch.ones(10)
    low, high = (head_losses(out, known, torch.tensor([s]), scale)[0] for s in (0.01, 100.0))
    assert low == pytest.approx(0.0486, abs=1e-3)  # of the first frame alone
    assert high < 1e-4


@torch.no_grad()
def _draw(model: SVDWorldModel) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 3, 8, 12, 8, generator=generator)
    return model(x, torch.tensor(0.3), torch.randn(1, 3, 32, generator=generator))


def test_lora_is_saved_loaded_and_fused(make_svd: Callable[..., SVDWorldModel], tmp_path: Path) -> None:
    model = make_svd()
    before, names = _draw(model), list(model.state_dict())
    trained = add_lora(model, rank=2)
    assert torch.allclose(_draw(model), before, atol=1e-6)
    assert 0 < sum(parameter.numel() for parameter in trained) < 0.3 * sum(p.numel() for p in model.parameters())
    loss(model, _batch(model), generator=torch.Generator().manual_seed(1))["loss"].backward()
    with torch.no_grad():
        for parameter in trained:
            if parameter.grad is not None:
                parameter.sub_(0.5 * parameter.grad / parameter.grad.norm().clamp(min=1e-9))
    tuned = _draw(model)
    assert not torch.allclose(tuned, before, atol=1e-3)

    save_lora(model, tmp_path)
    fresh = make_svd()
    load_lora(fresh, tmp_path)
    assert torch.allclose(_draw(fresh), tuned, atol=1e-6)
    assert torch.equal(fresh.heads.out[-1].bias, model.heads.out[-1].bias)
    fuse_lora(fresh)
    assert list(fresh.state_dict()) == names
    assert torch.allclose(_draw(fresh), tuned, atol=1e-4)
    (tmp_path / "trained_parts.safetensors").unlink()
    with pytest.raises(CheckpointError, match="missing"):
        load_lora(make_svd(), tmp_path)
