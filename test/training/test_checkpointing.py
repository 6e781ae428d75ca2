"""Training state on disk is whole, exact and never pickled."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from wvl_ros.errors import CheckpointError
from wvl_ros.training import checkpointing


def _steps(module: nn.Module, optimizer: torch.optim.Optimizer, seeds: range) -> None:
    for seed in seeds:
        x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        module(x).square().mean().backward()
        optimizer.step()


def test_an_optimizer_goes_on_exactly_where_it_was(tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole, halves = (nn.Conv2d(3, 8, 3) for _ in range(2))
    halves.load_state_dict(whole.state_dict())
    optimizer = torch.optim.AdamW(whole.parameters(), 1e-2)
    _steps(whole, optimizer, range(6))
    first = torch.optim.AdamW(halves.parameters(), 1e-2)
    _steps(halves, first, range(3))
    tensors = checkpointing.module_tensors(halves, "model") | checkpointing.optimizer_tensors(first)
    checkpointing.save_state(tmp_path / "state.safetensors", tensors, {"step": 3})
    loaded, facts = checkpointing.load_state(tmp_path / "state.safetensors")
    again = nn.Conv2d(3, 8, 3)
    checkpointing.restore_module(again, loaded, "model")
    second = torch.optim.AdamW(again.parameters(), 1e-2)
    checkpointing.restore_optimizer(second, loaded)
    _steps(again, second, range(facts["step"], 6))
    assert torch.equal(again.weight, whole.weight)


def test_a_failed_write_leaves_the_old_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.safetensors"
    checkpointing.save_state(path, {"x": torch.ones(2)}, {"step": 1})

    def full_disk(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpointing.os, "fsync", full_disk)
    with pytest.raises(OSError, match="space"):
        checkpointing.save_state(path, {"x": torch.zeros(2)}, {"step": 2})
    assert checkpointing.load_state(path)[1] == {"step": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_no_state_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state.safetensors").write_bytes(b"not a state")
    with pytest.raises(CheckpointError, match="delete it"):
        checkpointing.load_state(tmp_path / "state.safetensors")
    with pytest.raises(CheckpointError, match="another model"):
        checkpointing.restore_module(nn.Linear(2, 2), {"model.weight": torch.zeros(3, 3)}, "model")
