"""A checkpoint that is not what was saved is refused, with a sentence that says what to do."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from wvl_ros.errors import CheckpointError
from wvl_ros.world_model import checksums
from wvl_ros.world_model.loading import WEIGHTS_NAME, load_world_model, save_world_model
from wvl_ros.world_model.model import WorldModel


@pytest.fixture(scope="module")
def model() -> WorldModel:
    """A tiny one."""
    torch.manual_seed(0)
    return WorldModel(channels=8, condition_dim=16, vocabulary=["cube"])


@pytest.fixture
def folder(tmp_path: Path, model: WorldModel) -> Path:
    save_world_model(model, tmp_path)
    return tmp_path


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _tamper(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1  # safetensors itself cannot tell
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("damage", [_cut, _tamper])
def test_weights_that_were_cut_off_or_changed_are_refused(folder: Path, damage: Callable[[Path], None]) -> None:
    load_world_model(folder)
    damage(folder / WEIGHTS_NAME)
    with pytest.raises(CheckpointError, match="Copy the folder again"):
        load_world_model(folder)


def test_weights_without_sums_are_read(folder: Path) -> None:
    (folder / checksums.FILE).unlink()
    load_world_model(folder)
    _cut(folder / WEIGHTS_NAME)
    with pytest.raises(CheckpointError, match="damaged"):
        load_world_model(folder)


@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_killed_while_saving(folder: Path, model: WorldModel, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Whichever of the renames is the last, the folder can be loaded."""
    renames = 0

    def replace(self: Path, target: Path) -> None:
        nonlocal renames
        renames += 1
        if renames == at:
            raise KeyboardInterrupt
        os.replace(self, target)

    other = WorldModel(channels=8, condition_dim=16, vocabulary=["cube"])
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        with pytest.raises(KeyboardInterrupt):
            save_world_model(other, folder)
    loaded = load_world_model(folder)
    expected = model if at <= 2 else other
    assert torch.allclose(loaded.unet.stem.weight, expected.unet.stem.weight, atol=1e-2)


def test_a_pickle_is_never_opened(folder: Path) -> None:
    torch.save({"x": torch.zeros(1)}, folder / WEIGHTS_NAME)
    with pytest.raises(CheckpointError, match="is a pickle"):
        load_world_model(folder)
    (folder / WEIGHTS_NAME).rename(folder / "diffusion_pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"\.bin' is a pickle"):
        load_world_model(folder)


def test_weights_without_values_are_not_saved(tmp_path: Path) -> None:
    with torch.device("meta"):
        empty = torch.nn.Linear(2, 2)
    with pytest.raises(CheckpointError, match="meta"):
        save_world_model(empty, tmp_path)  # type: ignore[arg-type]
