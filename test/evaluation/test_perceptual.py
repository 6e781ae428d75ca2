"""LPIPS and FVD: computed by the given network, or not at all. (The true networks are not shipped.)"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from wvl_ros.errors import CheckpointError
from wvl_ros.evaluation.perceptual import I3D, clips, frechet_distance, load_lpips, lpips, perceptual_measures


def _videos(count: int = 3, frames: int = 17) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    true = [rng.integers(0, 256, (frames, 64, 64, 3), dtype=np.uint8) for _ in range(count)]
    return [(np.clip(video.astype(int) + 20, 0, 255).astype(np.uint8), video) for video in true]


def test_without_networks_nothing_is_computed() -> None:
    assert perceptual_measures(_videos(1), None, None) == {"lpips": None, "fvd": None}


def test_the_frechet_distance_of_two_gaussians() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=(4000, 3))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(a, a + np.array([3, 0, 4])) == pytest.approx(25, abs=1e-6)
    assert frechet_distance(a, 2 * a) == pytest.approx(3 + np.square(a.mean(0)).sum(), abs=0.2)  # 3 (2 - 1)^2


def test_clips_are_sixteen_frames() -> None:
    assert [len(clip) for clip in clips(np.zeros((40, 8, 8, 3), np.uint8))] == [16, 16]
    assert clips(np.zeros((15, 8, 8, 3), np.uint8)) == []


class _Video(nn.Module):
    """Called as the I3D is, with features that can be worked out by hand."""

    def forward(self, x: Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False) -> Tensor:
        return x.mean([1, 2, 3, 4])[:, None].repeat(1, 400) * torch.arange(400)


class _Image(nn.Module):
    def forward(self, x: Tensor, resize_images: bool = True, return_lpips: bool = False) -> Tensor:
        return x.mean([2, 3])


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_a_network_is_called_as_its_authors_do_and_named(tmp_path: Path) -> None:
    torch.jit.script(_Video()).save(str(tmp_path / "i3d.pt"))
    torch.jit.script(_Image()).save(str(tmp_path / "vgg.pt"))
    videos = _videos()
    result = perceptual_measures(videos, tmp_path / "vgg.pt", tmp_path / "i3d.pt")
    gaps = [np.square(a.mean((1, 2), dtype=float) - b.mean((1, 2))).sum(1).mean() for a, b in videos]
    assert result["lpips"] == pytest.approx(np.mean(gaps), rel=1e-3)
    assert result["fvd_clips"] == 3
    assert result["fvd"] > 0
    assert result["fvd_network"]["file"] == "i3d.pt"
    assert len(result["lpips_network"]["sha256"]) == 64
    with pytest.raises(CheckpointError, match="not the I3D"):
        I3D(tmp_path / "vgg.pt").features(videos[0][0])
    with pytest.raises(CheckpointError, match="not the VGG-16"):
        list(lpips(load_lpips(tmp_path / "i3d.pt"), iter(videos)))


def test_the_alexnet_version_has_the_layers_of_the_package_lpips(tmp_path: Path) -> None:
    shapes = {1: (0, 64, 3, 11), 2: (3, 192, 64, 5), 3: (6, 384, 192, 3), 4: (8, 256, 384, 3), 5: (10, 256, 256, 3)}
    torch.manual_seed(0)
    weights = {"scaling_layer.shift": torch.zeros(1, 3, 1, 1), "scaling_layer.scale": torch.ones(1, 3, 1, 1)}
    for piece, (number, out, into, side) in shapes.items():
        weights[f"net.slice{piece}.{number}.weight"] = 0.05 * torch.randn(out, into, side, side)
        weights[f"net.slice{piece}.{number}.bias"] = torch.zeros(out)
        weights[f"lin{piece - 1}.model.1.weight"] = torch.rand(1, out, 1, 1)
    save_file(weights, tmp_path / "alex.safetensors")
    distance = load_lpips(tmp_path / "alex.safetensors")
    video, other = _videos(1)[0]
    near, far, none = lpips(distance, iter([(video, other), (255 - video, other), (other, other)]))
    assert 0 < near < far
    assert none == 0
    del weights["lin0.model.1.weight"]
    save_file(weights, tmp_path / "half.safetensors")
    with pytest.raises(CheckpointError, match="lpips"):
        load_lpips(tmp_path / "half.safetensors")
