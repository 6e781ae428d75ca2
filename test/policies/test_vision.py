"""What a network sees of images."""

from __future__ import annotations

import numpy as np
import torch

from wvl_ros.policies.vision import jolted


def test_images_are_moved_by_whole_pixels_and_their_edges_repeated() -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 2, 3, 8, 8), dtype=np.uint8))
    moved = jolted(images, np.array([[0, 0], [2, 0], [-1, 2]]))
    assert moved.dtype == torch.uint8
    assert torch.equal(moved[0], images[0])
    assert torch.equal(moved[1, ..., 2:, :], images[1, ..., :-2, :])
    assert torch.equal(moved[1, ..., 0, :], images[1, ..., 0, :])
    assert torch.equal(moved[2, ..., :-1, 2:], images[2, ..., 1:, :-2])
    assert torch.equal(moved[2, ..., -1, 2:], images[2, ..., -1, :-2])
    assert torch.equal(jolted(images, np.zeros((3, 2), int)), images)
