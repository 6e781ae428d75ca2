"""The datasets' video codecs on DROID's pictures and on tabletop renderings: error, size, speed."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

DROID = "WVL_DROID"  # environment variable: a folder of DROID episodes, for more than the one in this package
TASKS = ("pick_place", "push")
SIZE = (480, 640)


def run() -> dict[str, Any]:
    """PSNR, size against the raw pictures (which make up a bag), and frames a second of one core."""
    figures: dict[str, Any] = {}
    pictures = {"DROID 320x192": _droid(), "tabletop 640x480": _tabletop()}
    for codec in ("h264", "lossless"):
        for name, (stacks, stride) in pictures.items():
            for camera, clips in stacks.items():
                figures[f"{codec}, {name}, {camera}"] = _measure(codec, clips, stride)
    return figures


def _measure(codec: str, clips: list[NDArray[np.uint8]], stride: int) -> str:
    from wvl_ros.sans.store.video import VideoWriter, read_frames

    errors: list[float] = []
    size = raw = frames = 0
    encoding = decoding = 0.0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        for clip in clips:
            count = len(clip) * stride

            def encode(clip: NDArray[np.uint8] = clip) -> None:
                with VideoWriter(path, clip.shape[1:3], 15.0, codec) as writer:
                    for picture in clip:
                        writer.write(picture)
                        writer.hold(stride - 1)

            encoding += _seconds(encode)[0]
            spent, back = _seconds(lambda clip=clip, n=count: list(read_frames(path, clip.shape[1:3], n, stride)))  # type: ignore[misc]
            decoding += spent
            size, raw, frames = size + path.stat().st_size, raw + clip.nbytes, frames + count
            errors += [float(np.mean((a.astype(np.float32) - b) ** 2)) for a, b in zip(back, clip, strict=True)]
    speed = f"{frames / encoding:.0f} frames/s in, {frames / decoding:.0f} out"
    if max(errors) == 0:
        return f"bit-exact, 1/{raw / size:.0f} of the raw size, {speed}"
    psnr = 10 * np.log10(255**2 / np.maximum(errors, 1e-9))
    return f"PSNR min {psnr.min():.1f} dB, mean {psnr.mean():.1f}, 1/{raw / size:.0f} of the raw size, {speed}"


def _seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of all threads, and the result."""
    began = time.process_time()
    result = work()
    return time.process_time() - began, result


def _droid() -> tuple[dict[str, list[NDArray[np.uint8]]], int]:
    from wvl_ros.sans.droid import IMAGE_STRIDE, read_droid
    from wvl_ros.sans.sources import EXAMPLE_FOLDER

    folder = os.environ.get(DROID)
    folders = sorted(path.parent for path in Path(folder).glob("*/annotation.json")) if folder else [EXAMPLE_FOLDER]
    stacks: dict[str, list[NDArray[np.uint8]]] = {}
    for path in folders:
        for camera, stack in read_droid(path).images.items():
            stacks.setdefault(camera, []).append(stack)
    return stacks, IMAGE_STRIDE


def _tabletop() -> tuple[dict[str, list[NDArray[np.uint8]]], int]:
    from wvl_ros.sans.collect import collect_episode
    from wvl_ros.worlds.tabletop import TabletopWorld

    world = TabletopWorld(image_height=SIZE[0], image_width=SIZE[1])
    stacks: dict[str, list[NDArray[np.uint8]]] = {}
    for seed, task in enumerate(TASKS):
        for camera, stack in collect_episode(world, task, seed, steps=60).images.items():
            stacks.setdefault(camera, []).append(stack)
    return stacks, 1
