# mypy: ignore-errors
"""Runs in an environment with LeRobot and without wvl_ros: opens a dataset and compares it with what we read from it.

python lerobot_check.py DATASET REFERENCE.npz BACKEND; prints one JSON object.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np
import pandas as pd
import torch
from datasets import load_dataset
from lerobot import __version__
from lerobot.datasets.lerobot_dataset import LeRobotDataset

HISTORY = [-0.2, -1 / 15, 0.0]


def main(root: str, reference: str, backend: str) -> dict[str, Any]:
    """Compares numbers, frames, windows and batches; raises AssertionError where they differ."""
    ours = np.load(reference)
    images = [name for name in ours.files if name.startswith("observation.images.")]
    numbers = [name for name in ours.files if name not in images and name != "task"]
    dataset = LeRobotDataset("wvl_ros/check", root=root, video_backend=backend)
    began, frames, worst = time.perf_counter(), 0, 0
    exact = 0
    for i in range(len(dataset)):
        item = dataset[i]
        for name in numbers:
            value = item[name]
            got = value.numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
            assert np.array_equal(got.reshape(-1), ours[name][i].astype(got.dtype).reshape(-1)), (name, i)
        assert item["task"] == ours["task"][i]
        for name in images:
            picture = (item[name] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
            off = int(np.abs(picture.astype(int) - ours[name][i]).max())
            worst, exact, frames = max(worst, off), exact + (off == 0), frames + 1
    seconds = time.perf_counter() - began
    windows = LeRobotDataset(
        "wvl_ros/check",
        root=root,
        video_backend=backend,
        delta_timestamps={images[0]: HISTORY, "action": [0.0, 1 / 15]},
    )
    item = windows[len(windows) // 2]
    assert item[images[0]].shape[0] == 3
    assert item["action"].shape == (2, 7)
    loader = torch.utils.data.DataLoader(dataset, batch_size=16, shuffle=True, num_workers=0)
    batch = next(iter(loader))
    assert batch["observation.state"].shape == (16, 8)
    assert len(batch["outcome"]) == 16
    table = load_dataset("parquet", data_files=f"{root}/data/*/*.parquet", split="train")
    assert len(table) == len(dataset)
    for name in numbers:  # bit by bit; LeRobot's items are float32
        assert np.array_equal(np.asarray(table[name]).reshape(-1), ours[name].reshape(-1)), name
    assert list(pd.read_parquet(f"{root}/meta/tasks.parquet").columns) == ["task_index"]
    assert len(pd.read_parquet(f"{root}/data")) == len(dataset)
    return {
        "lerobot": __version__,
        "torch": torch.__version__,
        "backend": backend,
        "items": len(dataset),
        "episodes": dataset.num_episodes,
        "frames": frames,
        "frames that are ours exactly": exact,
        "largest difference of a pixel": worst,
        "items/s": round(len(dataset) / seconds, 1),
        "statistics": sorted(dataset.meta.stats),
    }


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
