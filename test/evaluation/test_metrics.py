"""Measures against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wvl_ros.evaluation import metrics
from wvl_ros.evaluation.outcome import best_run, choose_threshold, outcome_measures


def _image(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(40, 200, (1, 32, 32, 3), dtype=np.uint8)


def test_psnr_of_a_known_error() -> None:
    image = _image()
    assert metrics.psnr(image, image)[0] == 100
    assert metrics.psnr(image, image + 10)[0] == pytest.approx(20 * np.log10(255 / 10))


def test_ssim_is_one_for_equal_images_and_falls_with_noise() -> None:
    image = _image()
    assert metrics.ssim(image, image)[0] == pytest.approx(1.0, abs=1e-5)
    rng = np.random.default_rng(1)
    noisy = [np.clip(image + rng.normal(0, s, image.shape), 0, 255).astype(np.uint8) for s in (5, 40)]
    assert 1 > metrics.ssim(noisy[0], image)[0] > metrics.ssim(noisy[1], image)[0]
    # Two flat images: only the luminance term is left.
    dark, bright = (np.full((1, 32, 32, 3), v, np.uint8) for v in (51, 102))
    expected = (2 * 0.2 * 0.4 + 1e-4) / (0.2**2 + 0.4**2 + 1e-4)
    assert metrics.ssim(dark, bright)[0] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("shape", [(16, 20), (13, 11)])
def test_ssim_is_that_of_a_plain_loop(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(2)
    one, two = (rng.integers(0, 256, (2, *shape, 3), dtype=np.uint8) for _ in range(2))
    mixed = (0.7 * one + 0.3 * two).astype(np.uint8)
    expected = [
        np.mean([_plain_ssim(a[..., c] / 255, b[..., c] / 255) for c in range(3)])
        for a, b in zip(one, mixed, strict=True)
    ]
    assert metrics.ssim(one, mixed) == pytest.approx(expected, abs=1e-4)


def test_ssim_is_that_of_scikit_image() -> None:
    rng = np.random.default_rng(2)
    image = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
    other = np.clip(image + rng.normal(0, 30, image.shape), 0, 255).astype(np.uint8)
    # skimage 0.26.0: structural_similarity(..., channel_axis=2, full=True, gaussian_weights=True, sigma=1.5,
    # use_sample_covariance=False, data_range=255), the mean of its map 5 pixels from the edges.
    assert metrics.ssim(image[None], other[None])[0] == pytest.approx(0.92562, abs=1e-3)


def _plain_ssim(x: np.ndarray, y: np.ndarray) -> float:
    axis = np.exp(-((np.arange(11) - 5.0) ** 2) / (2 * 1.5**2))
    window = np.outer(axis, axis) / axis.sum() ** 2
    values = []
    for i in range(x.shape[0] - 10):
        for j in range(x.shape[1] - 10):
            a, b = x[i : i + 11, j : j + 11], y[i : i + 11, j : j + 11]
            ma, mb = (window * a).sum(), (window * b).sum()
            va, vb = (window * a * a).sum() - ma**2, (window * b * b).sum() - mb**2
            cov = (window * a * b).sum() - ma * mb
            c1, c2 = 0.01**2, 0.03**2
            values.append((2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2)))
    return float(np.mean(values))


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=30))
def test_area_under_curve_counts_pairs(rows: list[tuple[int, bool]]) -> None:
    scores = np.array([float(s) for s, _ in rows])
    positive = np.array([p for _, p in rows])
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[positive] for b in scores[~positive]]
    result = metrics.area_under_curve(scores, positive)
    assert result is None if not pairs else result == pytest.approx(np.mean(pairs))


def test_displacement_finds_how_far_a_thing_is_drawn_off() -> None:
    truth = np.zeros((64, 64, 3), np.uint8)
    truth[28:36, 26:38] = np.random.default_rng(0).integers(50, 255, (8, 12, 3))
    moved = np.roll(truth, (3, -4), axis=(0, 1))
    assert metrics.displacement(moved, truth, (32, 32)) == 5.0
    assert metrics.displacement(truth, truth, (32, 32)) == 0.0
    assert metrics.displacement(truth, truth, (5, 32)) is None


def test_the_threshold_parts_successes_from_the_rest() -> None:
    chances = [np.array(c) for c in ([0.1, 0.9, 0.9], [0.2, 0.8, 0.85], [0.1, 0.5, 0.5], [0.95, 0.1, 0.1])]
    outcomes = ["success", "success", "near_success", "failure"]
    threshold, frames = choose_threshold(chances, outcomes)
    # A single spike of 0.95 is told from a success only by its length.
    assert frames == 2
    assert 0.5 <= threshold < 0.8
    # One of two frames only by three.
    longer = [*([np.array([0.1, 0.9, 0.9, 0.9])] * 2), np.array([0.95, 0.95, 0.1, 0.1])]
    assert choose_threshold(longer, ["success", "success", "failure"])[1] == 3
    # Not even where one frame alone would tell them best.
    flicker = [*([np.array([0.1, 0.9, 0.1])] * 3), *([np.array([0.1, 0.1, 0.1])] * 3)]
    assert choose_threshold(flicker, ["success"] * 3 + ["failure"] * 3)[1] > 1
    measures = outcome_measures(chances, outcomes, threshold, frames)
    assert measures["accuracy"] == 1.0
    assert measures["false_success_near"] == 0.0
    assert measures["matrix"]["success"] == {"said_success": 2, "said_not": 0}
    assert measures["matrix"]["failure"] == {"said_success": 0, "said_not": 1}
    assert best_run(np.array([0.9]), 2) == 0.0


def test_the_threshold_believes_few_failures_and_tells_not_many_fewer_successes_than_there_are() -> None:
    rng = np.random.default_rng(0)
    peaks = np.concatenate([rng.normal(0.6, 0.15, 60), rng.normal(0.4, 0.15, 240)]).clip(0, 1)  # 60 of 300 succeed
    outcomes = ["success"] * 60 + ["failure"] * 240
    threshold, frames = choose_threshold([np.array([peak] * 4) for peak in peaks], outcomes)
    balanced = 0.5  # where the two are alike likely: a quarter of the failures would be told as successes
    told, told_there = (int((peaks > t).sum()) for t in (threshold, balanced))
    assert abs(told - 60) < abs(told_there - 60)
    assert 60 - 0.05 * 300 <= told <= 60 + 30
    false = [float((peaks[60:] > t).mean()) for t in (threshold, balanced)]
    assert false[0] < 0.8 * false[1]
    assert outcome_measures([np.array([peak] * 4) for peak in peaks], outcomes, threshold, frames)["accuracy"] > 0.75


def test_episodes_without_an_outcome_do_not_count() -> None:
    measures = outcome_measures([np.array([0.9]), np.array([0.9])], ["success", "aborted"], 0.5, 1)
    assert measures["episodes"] == 1
    assert measures["accuracy"] == 1.0
