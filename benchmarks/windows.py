"""Windows of 16 frames x 3 cameras at 128x128 from the trainer's cache: how many a second, and in how much memory."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

SIZE, BATCH, SECONDS = 128, 16, 10.0
IMAGES = 70  # an episode: 14 s at 5 Hz
EPISODES = {"a cache of 0.3 GB": 30, "a cache of 3 GB": 300}


def run() -> dict[str, Any]:
    """Each cache in a process of its own on one core: windows a second and the process's own memory."""
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, count in EPISODES.items():
            _make(Path(folder) / str(count), count)
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                rate, before, after = pool.apply(_measure, (Path(folder) / str(count), count))
            figures[f"{name}, windows a second"] = round(rate)
            figures[f"{name}, memory without the page cache"] = f"{after:.0f} MB (opened: {before:.0f} MB)"
    return figures


def _make(folder: Path, count: int) -> None:
    """A cache of `count` episodes: one is decoded, then its bytes are repeated."""
    import json

    from wvl_ros.sans.episode import Episode
    from wvl_ros.sans.windows import window_cache
    from wvl_ros.worlds.droid import CAMERAS

    steps = 3 * (IMAGES - 1) + 1
    rng = np.random.default_rng(0)
    images = {camera: rng.integers(0, 256, (IMAGES, SIZE, SIZE, 3), np.uint8) for camera in CAMERAS}
    shapes = (steps, 7), (steps, 6), (steps, 1), (steps - 1, 7)
    joints, poses, grippers, action = (rng.random(shape) for shape in shapes)
    reward = np.zeros(steps - 1, np.float32)
    episode = Episode(images, joints, poses, grippers, action, reward, "", "", outcome="failure", image_stride=3)
    names = [f"{i:04d}.safetensors" for i in range(count)]
    episode.save(folder / names[0])
    cache = window_cache(folder)
    target = next((folder / ".cache").iterdir())
    for name in names[1:]:
        os.link(folder / names[0], folder / name)  # the same size and time, so the lines below are true
    line = json.loads((target / "episodes.jsonl").read_text())
    with (target / "frames.bin").open("ab") as frames, (target / "numbers.bin").open("ab") as rows:
        for _ in names[1:]:
            frames.write(cache.frames.data)
            rows.write(cache.numbers.data)
    lines = []
    for i, name in enumerate(names):
        content = line["content"].replace(names[0], name)
        lines.append(line | {"name": name, "content": content, "frame": i * IMAGES, "step": i * steps})
    (target / "episodes.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))


def _measure(folder: Path, count: int) -> tuple[float, float, float]:
    from wvl_ros.sans.windows import WindowConfig, WindowSampler, window_cache

    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    cache = window_cache(folder)
    assert len(cache) == count
    sampler = WindowSampler(cache, WindowConfig(frames=16, history=4))
    images = sampler.sample(BATCH).images
    before, drawn, began = _memory(), 0, time.perf_counter()
    while (elapsed := time.perf_counter() - began) < SECONDS:
        windows = sampler.sample(BATCH, images)
        drawn += len(windows.images)
    return drawn / elapsed, before, _memory()


def _memory() -> float:
    """MB of this process's memory that is no file's."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(next(line for line in status.splitlines() if line.startswith("RssAnon")).split()[1]) / 1000
