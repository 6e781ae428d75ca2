"""Measures of images and of yes/no predictions that need no network; see `perceptual` for those that do."""

from __future__ import annotations

import functools

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_WINDOW = 11
_SIGMA = 1.5
_BLOCK = 16  # images at a time, so that the intermediate maps stay in the processor's cache


def psnr(images: NDArray[np.uint8], truth: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Peak signal-to-noise ratio in dB, (N,), of images (N, H, W, 3) uint8; equal images give 100."""
    error = np.square(images.astype(np.float32) - truth.astype(np.float32)).mean(axis=(1, 2, 3), dtype=np.float64)
    return np.minimum(100.0, 10 * np.log10(255.0**2 / np.maximum(error, 1e-10)))


def ssim(images: NDArray[np.uint8], truth: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Structural similarity (N,) of images (N, H, W, 3) uint8: Gaussian window, sigma 1.5, 11 pixels, mean over
    colours.

    Wang et al. 2004; equals scikit-image with gaussian_weights=True, use_sample_covariance=False up to the border.
    """
    blocks = [_ssim(images[i : i + _BLOCK], truth[i : i + _BLOCK]) for i in range(0, len(images), _BLOCK)]
    return np.concatenate(blocks).astype(np.float64) if blocks else np.empty(0)


def _ssim(images: NDArray[np.uint8], truth: NDArray[np.uint8]) -> NDArray[np.float32]:
    x, y = (torch.from_numpy(np.ascontiguousarray(a.transpose(0, 3, 1, 2))).float() / 255 for a in (images, truth))
    rows, columns = _window(x.shape[2]), _window(x.shape[3])

    def blur(a: Tensor) -> Tensor:
        return rows.T @ (a @ columns)  # the window is separable

    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y, cov = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2, blur(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    value = (2 * mean_x * mean_y + c1) * (2 * cov + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return np.asarray(value.mean((1, 2, 3)))


@functools.cache
def _window(length: int) -> Tensor:
    """(length, length - 10): column i weighs the 11 pixels from i on."""
    line = torch.exp(-((torch.arange(_WINDOW) - _WINDOW // 2).float() ** 2) / (2 * _SIGMA**2))
    matrix = torch.zeros(length, length - _WINDOW + 1)
    for i in range(matrix.shape[1]):
        matrix[i : i + _WINDOW, i] = line / line.sum()
    return matrix


def displacement(
    image: NDArray[np.uint8], truth: NDArray[np.uint8], center: tuple[float, float], half: int = 10, reach: int = 5
) -> float | None:
    """How many pixels what `truth` (H, W, 3) shows around `center` (x, y) lies elsewhere in `image`, by block matching.

    Args:
        half: half the side of the block. reach: the furthest place looked at, in pixels along each axis.

    Returns:
        The distance to the best match in pixels, whole steps along each axis; None where the block leaves the image.
    """
    x, y = round(center[0]), round(center[1])
    margin = half + reach
    height, width = truth.shape[:2]
    if not (margin <= x < width - margin and margin <= y < height - margin):
        return None
    block = truth[y - half : y + half, x - half : x + half].astype(np.float32)
    area = image[y - margin : y + margin, x - margin : x + margin].astype(np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(area, block.shape)[:, :, 0]
    errors = np.square(windows - block).mean((2, 3, 4))
    row, column = np.unravel_index(int(errors.argmin()), errors.shape)
    return float(np.hypot(row - reach, column - reach))


def area_under_curve(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> float | None:
    """Probability that a positive scores above a negative (ties count half); None when one kind is missing."""
    high, low = scores[positive], scores[~positive]
    if not len(high) or not len(low):
        return None
    ordered = np.sort(low)
    below = np.searchsorted(ordered, high, "left") + np.searchsorted(ordered, high, "right")
    return float(below.mean() / (2 * len(low)))


def mean_interval(values: NDArray[np.float64], resamples: int = 2000) -> tuple[float | None, float | None]:
    """95 % interval of a mean, by bootstrap over the values; the same each time. (None, None) without values."""
    if not len(values):
        return None, None
    rows = np.random.default_rng(0).integers(0, len(values), (resamples, len(values)))
    low, high = np.quantile(values[rows].mean(1), [0.025, 0.975])
    return round(float(low), 4), round(float(high), 4)
