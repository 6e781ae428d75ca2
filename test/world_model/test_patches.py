"""Images survive the way into the network and back."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from wvl_ros.world_model import patches


@settings(max_examples=20)
@given(st.integers(0, 2**31), st.sampled_from([(16, 4), (32, 4), (16, 2)]))
def test_frames_come_back_exactly(seed: int, shape: tuple[int, int]) -> None:
    size, patch = shape
    views = np.random.default_rng(seed).integers(0, 256, (2, 3, size, size, 3), dtype=np.uint8)
    frames = patches.to_patches(views, patch)
    assert frames.shape == (2, size // patch, size // patch, 9 * patch * patch)
    assert np.array_equal(patches.from_patches(frames, patch), views)
    assert np.array_equal(patches.to_uint8(patches.to_tensor(frames)), frames)


def test_shrinking_averages_areas() -> None:
    image = np.random.default_rng(0).integers(0, 256, (1, 128, 128, 3), dtype=np.uint8)
    small = patches.resize(image, 64, 64)
    mean = image.reshape(1, 64, 2, 64, 2, 3).mean((2, 4))
    assert np.abs(small - mean).max() <= 0.5
    assert patches.resize(small, 192, 320).shape == (1, 192, 320, 3)


def test_patches_match_torch_order() -> None:
    import torch
    import torch.nn.functional as F

    views = np.random.default_rng(1).integers(0, 256, (1, 3, 16, 16, 3), dtype=np.uint8)
    frame = patches.to_tensor(patches.to_patches(views, 4))
    wrist = F.pixel_shuffle(frame[:, 96:], 4)
    assert torch.allclose(wrist, torch.from_numpy(views[:, 2]).permute(0, 3, 1, 2).float() / 127.5 - 1)
