"""Pixels for the vision tower: the same numbers as transformers' own processors give."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

from wvl_ros.rewards.vlm.model import FAMILIES
from wvl_ros.rewards.vlm.pixels import Patching

PATCH = {"qwen2_5_vl": 14, "qwen3_vl": 16}
LOW, HIGH = 56 * 56, 128 * 128


def patching(family: str) -> Patching:
    return Patching(PATCH[family], 2, 2, FAMILIES[family].mean, FAMILIES[family].std)


@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize("size", [(64, 64), (180, 320), (30, 50), (97, 61)])
def test_a_still_picture_is_what_the_image_processor_makes_of_it(family: str, size: tuple[int, int]) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    theirs = Qwen2VLImageProcessorPil(
        patch_size=PATCH[family],
        image_mean=FAMILIES[family].mean,
        image_std=FAMILIES[family].std,
        size={"shortest_edge": LOW, "longest_edge": HIGH},
    )(picture, return_tensors="pt")
    mine, grid = patching(family).cut(np.stack([picture, picture]), LOW, HIGH)
    assert [list(grid)] == theirs["image_grid_thw"].tolist()
    torch.testing.assert_close(mine, theirs["pixel_values"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("count", [1, 4, 5])
def test_a_video_is_cut_as_the_video_processor_cuts_it(count: int) -> None:
    frames = np.random.default_rng(1).integers(0, 256, (count, 64, 96, 3), dtype=np.uint8)
    mine, grid = patching("qwen3_vl").cut(frames, 1, 10**6)
    scaled = torch.from_numpy(frames).permute(0, 3, 1, 2).float()[None] / 255 * 2 - 1
    theirs, *their_grid = Qwen3VLVideoProcessor.patchify(None, scaled, 16, 2, 2)
    assert grid == tuple(their_grid)
    torch.testing.assert_close(mine, theirs[0], rtol=0, atol=1e-6)


@given(st.integers(16, 800), st.integers(16, 800), st.integers(1, 300_000), st.integers(1, 4))
def test_frames_are_scaled_to_the_size_that_the_image_processor_chooses(
    height: int, width: int, low: int, times: int
) -> None:
    high = times * low + 28 * 28
    size = patching("qwen2_5_vl").size(height, width, low, high)
    assert size == smart_resize(height, width, 28, low, high)
