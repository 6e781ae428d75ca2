"""LPIPS and FVD, by the networks they are defined with and nothing else: the user gives these as files.

Neither is shipped, and without its file a figure is not computed. Files that fit:

- LPIPS (Zhang et al. 2018), either the TorchScript `vgg16.pt` of NVIDIA's StyleGAN2-ADA and StyleGAN3 (it takes
  `return_lpips=True`), or the AlexNet version as a safetensors file that anyone with the package `lpips` can make:
  `safetensors.torch.save_model(lpips.LPIPS(net="alex"), "lpips_alex.safetensors")`.
- FVD (Unterthiner et al. 2018): the TorchScript `i3d_torchscript.pt` of StyleGAN-V, an I3D trained on Kinetics-400.

A TorchScript file holds a program: take it from its authors. The report names the file and its SHA-256.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from wvl_ros.errors import CheckpointError

_ALEX = ((0, 4, 2), (3, 1, 2), (6, 1, 1), (8, 1, 1), (10, 1, 1))  # layer, stride, padding of torchvision's AlexNet
_ALEX_POOLED = (3, 6)  # layers that a pooling comes before
_ALEX_SLICES = (1, 2, 3, 4, 5)
_I3D_FEATURES = 400
_I3D_FRAMES = 16  # a clip; the published figures use as many
_BATCH = 16


class Distance(Protocol):
    """LPIPS: distances (N,) between two sets of images float (N, 3, H, W) in 0..255."""

    def __call__(self, images: Tensor, truth: Tensor) -> Tensor:
        """See above."""


def load_lpips(path: Path) -> Distance:
    """LPIPS of a file as the module's docstring names them.

    Raises:
        CheckpointError: it cannot be read, or holds another network.
    """
    return _Alex(path) if path.suffix == ".safetensors" else _Vgg(path)


@torch.no_grad()
def lpips(distance: Distance, pairs: Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8]]]) -> NDArray[np.float64]:
    """Mean LPIPS of each pair of videos (T, H, W, 3) uint8, frame by frame."""
    result = []
    for images, truth in pairs:
        blocks = [
            distance(_pixels(images[i : i + _BATCH]), _pixels(truth[i : i + _BATCH]))
            for i in range(0, len(images), _BATCH)
        ]
        result.append(float(torch.cat(blocks).mean()))
    return np.array(result)


class I3D:
    """The I3D of StyleGAN-V's `i3d_torchscript.pt`.

    Raises:
        CheckpointError: it cannot be read, or is another network.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.network = path, _script(path)

    @torch.no_grad()
    def features(self, video: NDArray[np.uint8]) -> NDArray[np.float64]:
        """(400,) of a clip uint8 (T, H, W, 3); the network scales it to 224 pixels by itself."""
        clip = torch.from_numpy(np.ascontiguousarray(video.transpose(3, 0, 1, 2)))[None].float()
        try:
            out = self.network(clip, rescale=True, resize=True, return_features=True)
        except (RuntimeError, TypeError) as error:
            raise CheckpointError(
                f"'{self.path}' is not the I3D for FVD (i3d_torchscript.pt): {_line(error)}"
            ) from error
        if out.shape != (1, _I3D_FEATURES):
            raise CheckpointError(
                f"'{self.path}' gives {tuple(out.shape)} features, not the I3D's (1, {_I3D_FEATURES})."
            )
        return np.asarray(out[0], dtype=np.float64)


def clips(video: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """The clips of 16 frames of a video (T, H, W, 3), one after another; a rest of less is left out."""
    return [video[i : i + _I3D_FRAMES] for i in range(0, len(video) - _I3D_FRAMES + 1, _I3D_FRAMES)]


def frechet_distance(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Between the Gaussians of two sets of features (N, D) and (M, D), N and M at least 2 (Heusel et al. 2017)."""
    gap = a.mean(0) - b.mean(0)
    one, two = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    values, vectors = np.linalg.eigh(one)
    root = vectors * np.sqrt(values.clip(min=0)) @ vectors.T
    shared = np.linalg.eigvalsh(root @ two @ root).clip(min=0)  # those of one @ two, but symmetric: always real
    return float(gap @ gap + np.trace(one) + np.trace(two) - 2 * np.sqrt(shared).sum())


def sha256(path: Path) -> str:
    """Of a file, as hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


class _Vgg:
    def __init__(self, path: Path) -> None:
        self.path, self.network = path, _script(path)

    def __call__(self, images: Tensor, truth: Tensor) -> Tensor:
        try:
            one, two = (self.network(x, resize_images=False, return_lpips=True) for x in (images, truth))
        except (RuntimeError, TypeError) as error:
            raise CheckpointError(f"'{self.path}' is not the VGG-16 for LPIPS (vgg16.pt): {_line(error)}") from error
        return (one - two).square().sum(1)


class _Alex:
    """AlexNet's five layers, and the learned weight of each channel."""

    def __init__(self, path: Path) -> None:
        try:
            weights = load_file(path)
            self.layers = [
                (weights[f"net.slice{s}.{n}.weight"], weights[f"net.slice{s}.{n}.bias"], stride, padding)
                for s, (n, stride, padding) in zip(_ALEX_SLICES, _ALEX, strict=True)
            ]
            lines = [f"lin{i}" if f"lin{i}.model.1.weight" in weights else f"lins.{i}" for i in range(len(_ALEX))]
            self.channels = [weights[f"{line}.model.1.weight"] for line in lines]
            self.shift, self.scale = weights["scaling_layer.shift"], weights["scaling_layer.scale"]
        except (OSError, SafetensorError, KeyError) as error:
            raise CheckpointError(
                f"'{path}' does not hold lpips.LPIPS(net='alex') as safetensors ({error}); see wvl_ros/evaluation/"
                "perceptual.py for how to make it."
            ) from error

    def __call__(self, images: Tensor, truth: Tensor) -> Tensor:
        total = torch.zeros(len(images))
        for one, two, weight in zip(self._features(images), self._features(truth), self.channels, strict=True):
            gap = (F.normalize(one, eps=1e-10) - F.normalize(two, eps=1e-10)).square()
            total += F.conv2d(gap, weight).mean((1, 2, 3))
        return total

    def _features(self, images: Tensor) -> list[Tensor]:
        x = (images / 127.5 - 1 - self.shift) / self.scale
        found = []
        for (weight, bias, stride, padding), (number, *_) in zip(self.layers, _ALEX, strict=True):
            if number in _ALEX_POOLED:
                x = F.max_pool2d(x, 3, 2)
            x = F.relu(F.conv2d(x, weight, bias, stride, padding))
            found.append(x)
        return found


def _script(path: Path) -> torch.jit.ScriptModule:
    try:
        with warnings.catch_warnings():  # TorchScript is deprecated, but it is what these networks are published as
            warnings.simplefilter("ignore", DeprecationWarning)
            return torch.jit.load(str(path), map_location="cpu").eval()
    except (RuntimeError, ValueError, OSError) as error:
        raise CheckpointError(f"'{path}' cannot be read as TorchScript: {_line(error)}") from error


def _pixels(images: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).float()


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def perceptual_measures(
    videos: Sequence[tuple[NDArray[np.uint8], NDArray[np.uint8]]], lpips_file: Path | None, i3d_file: Path | None
) -> dict[str, Any]:
    """`lpips` and `fvd` of pairs (imagined, true) of videos uint8 (T, H, W, 3), each None without its file.

    `lpips_network` and `fvd_network` name the files; `fvd_clips` counts the clips of 16 frames on each side.
    """
    result: dict[str, Any] = {"lpips": None, "fvd": None}
    if lpips_file is not None:
        values = lpips(load_lpips(lpips_file), iter(videos))
        result["lpips"] = round(float(values.mean()), 4) if len(values) else None
        result["lpips_network"] = {"file": lpips_file.name, "sha256": sha256(lpips_file)}
    if i3d_file is not None:
        network = I3D(i3d_file)
        sides = [[network.features(clip) for video in videos for clip in clips(video[side])] for side in range(2)]
        if len(sides[0]) >= 2:
            result["fvd"] = round(frechet_distance(np.stack(sides[0]), np.stack(sides[1])), 2)
        result |= {"fvd_network": {"file": i3d_file.name, "sha256": sha256(i3d_file)}, "fvd_clips": len(sides[0])}
    return result
