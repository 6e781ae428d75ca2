"""Conversion of a minute of three 640x480 cameras at 30 Hz: speed, beside a plain loop in one run, error and size.

The plain loop (`plain_loop.py`, rosbags and imageio in an environment of its own) chooses the same frames and encodes
them with the same settings. The two run in turns, twice; each counts by its better run.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

SECONDS = 60.0
ROUNDS = 2
SPACE = 7 << 30
HERE = Path(__file__).parent


def run(seconds: float = SECONDS, rounds: int = ROUNDS) -> dict[str, Any]:
    """Times, CPU seconds, PSNR and sizes."""
    from benchmarks.robot_bag import write_robot_bag

    memory = Path("/dev/shm")  # 5 GB that no disk's speed should decide about
    where = memory if memory.is_dir() and shutil.disk_usage(memory).free > SPACE else None
    with tempfile.TemporaryDirectory(prefix="wvl-bench-", dir=where) as name, tempfile.TemporaryDirectory() as other:
        folder = Path(name)
        python = _environment(Path(other))
        bag, out, plain = folder / "bag", folder / "sans", folder / "plain"
        size = write_robot_bag(bag, seconds)
        ours, theirs = [], []
        for _ in range(rounds):
            shutil.rmtree(out, ignore_errors=True)
            ours.append(_timed([sys.executable, "-m", "wvl_ros.cli", "convert", str(bag), "--out", str(out)]))
            shutil.rmtree(plain, ignore_errors=True)
            plain.mkdir()
            theirs.append(_timed([python, str(HERE / "plain_loop.py"), str(bag), str(plain), *_codec()]))
        theirs_size = sum(p.stat().st_size for p in plain.glob("*.mp4"))
        shutil.rmtree(plain)
        plain.mkdir()
        from_default = _timed([python, str(HERE / "plain_loop.py"), str(bag), str(plain), *_codec(preset=False)])
        mine, yours = min(ours), min(theirs)
        videos = {p: p.stat().st_size for p in out.rglob("*.mp4")}
        figures: dict[str, Any] = {
            "bag": f"{seconds:g} s, {size / 1e9:.2f} GB",
            "wvl convert": f"{mine[0]:.1f} s ({mine[1]:.1f} s of CPU), {seconds / mine[0]:.1f} x real time",
            "plain loop, rosbags and imageio": f"{yours[0]:.1f} s ({yours[1]:.1f} s of CPU)",
            "wvl convert is faster by": f"{yours[0] / mine[0]:.2f} x (CPU: {yours[1] / mine[1]:.2f} x)",
            "beside the plain loop with ffmpeg's own preset and the same crf": f"{from_default[0] / mine[0]:.2f} x "
            f"({from_default[0]:.1f} s)",
            "all runs, s": f"wvl {[round(t, 1) for t, _ in ours]}, plain {[round(t, 1) for t, _ in theirs]}",
            "videos": f"{sum(videos.values()) / 1e6:.1f} MB ({sum(videos.values()) / size:.2%} of the bag); "
            f"plain loop {theirs_size / 1e6:.1f} MB",
            "dataset": f"{sum(p.stat().st_size for p in out.rglob('*') if p.is_file()) / size:.2%} of the bag",
        }
        return figures | _errors(bag, out)


def _codec(*, preset: bool = True) -> list[str]:
    """Our encoder's settings as arguments of ffmpeg; without the preset, only the quality."""
    from wvl_ros.sans.store.video import _LOSSY

    options = _LOSSY if preset else {"crf": _LOSSY["crf"]}
    return [part for name, value in options.items() for part in (f"-{name}", value)] + ["-threads", "1"]


def _timed(command: list[str]) -> tuple[float, float]:
    """Wall and CPU seconds of a process and its children."""
    environment: Mapping[str, str] = os.environ | {"OMP_NUM_THREADS": "1"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.monotonic()
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    wall = time.monotonic() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _environment(folder: Path) -> str:
    """A Python with imageio and rosbags, in a scratch environment."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    packages = ["imageio", "imageio-ffmpeg", "rosbags", "numpy"]
    subprocess.run([str(folder / "bin" / "pip"), "install", "-q", *packages], check=True)
    return str(folder / "bin" / "python")


def _errors(bag_path: Path, out: Path) -> dict[str, str]:
    """PSNR of every tenth image against the bag's."""
    from wvl_ros.sans.bags.reader import bag_episodes
    from wvl_ros.sans.bags.streams import Bag
    from wvl_ros.sans.dataset import Dataset

    dataset = Dataset.open(out)
    figures = {}
    with Bag(bag_path) as bag:
        ((_, read),) = bag_episodes(bag)
        for camera, images in read().cameras.items():
            pairs = zip(images, dataset.images(0, camera), strict=True)
            errors = [np.mean((a.astype(float) - b) ** 2) for i, (a, b) in enumerate(pairs) if i % 10 == 0]
            psnr = 10 * np.log10(255**2 / np.array(errors))
            figures[f"PSNR {camera}"] = f"mean {psnr.mean():.1f} dB, lowest {psnr.min():.1f} dB"
    return figures
