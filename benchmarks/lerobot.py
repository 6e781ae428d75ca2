"""Opens datasets of ours in the real LeRobot, in an environment of its own (downloads about 3 GB)."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

import numpy as np

NEW = sys.version_info >= (3, 12)
VERSION = "0.6.0" if NEW else "0.4.4"  # 0.4.4 is the newest for Python 3.10 and 3.11
REQUIREMENTS = (  # what its datasets need; the robots' drivers do without
    *("torch==2.10.0", "torchvision==0.25.0", "datasets>=4.7,<5", "av>=15,<16", "accelerate", "einops", "jsonlines"),
    *("huggingface-hub>=1,<2" if NEW else "huggingface-hub<0.36", "packaging<26", "draccus==0.10.0", "gymnasium"),
    *("termcolor", "deepdiff<9", "setuptools<81", "imageio", "opencv-python-headless<4.13", "pandas<3", "numpy<2.3"),
    "pyserial",
)
WITHOUT_DEPENDENCIES = (f"lerobot=={VERSION}", "torchcodec==0.10.0")
ENVIRONMENT = "WVL_LEROBOT_ENVIRONMENT"  # a folder to keep the environment in


def run() -> dict[str, Any]:
    """Writes a DROID and a tabletop dataset and compares LeRobot's view of them with ours."""
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        home = Path(os.environ.get(ENVIRONMENT, folder / "environment")).expanduser()
        python = _install(home)
        environment = os.environ | {
            "LD_LIBRARY_PATH": str(_ffmpeg(home)),
            "HF_HOME": str(folder / "huggingface"),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        }
        for name, root in (("droid, h264", _droid(folder)), ("tabletop, lossless", _tabletop(folder))):
            reference = folder / f"{root.name}.npz"
            np.savez(reference, **_ours(root))
            before = sorted((path, path.stat().st_mtime_ns) for path in root.rglob("*") if path.is_file())
            for backend in ("torchcodec", "pyav"):
                script = Path(__file__).with_name("lerobot_check.py").read_text(encoding="utf-8")
                command = [str(python), "-", str(root), str(reference), backend]
                done = subprocess.run(  # by stdin: this folder has another lerobot.py
                    command, input=script, cwd=scratch, env=environment, capture_output=True, text=True, check=False
                )
                if done.returncode:
                    raise RuntimeError(f"LeRobot ({backend}) and wvl_ros differ on {name}:\n{done.stderr[-3000:]}")
                result = json.loads(done.stdout.splitlines()[-1])
                result.pop("statistics")
                figures[f"{name}, {backend}"] = ", ".join(f"{key} {value}" for key, value in result.items())
            after = sorted((path, path.stat().st_mtime_ns) for path in root.rglob("*") if path.is_file())
            figures[f"{name}, unchanged by LeRobot"] = before == after
    return figures


def _install(home: Path) -> Path:
    python = home / "bin" / "python"
    if not python.exists():
        venv.create(home, with_pip=True)
        install = [str(python), "-m", "pip", "install", "--quiet"]
        subprocess.run([*install, *REQUIREMENTS], check=True)
        subprocess.run([*install, "--no-deps", *WITHOUT_DEPENDENCIES], check=True)
    return python


def _ffmpeg(home: Path) -> Path:
    """FFmpeg's libraries under the names that torchcodec looks for: PyAV brings them, named otherwise."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    bundled = home / "lib" / version / "site-packages" / "av.libs"
    links = home / "ffmpeg"
    links.mkdir(exist_ok=True)
    for library in bundled.glob("lib*"):
        plain = re.sub(r"-[0-9a-f]{8}\.so\.(\d+).*", r".so.\1", library.name)
        for name in (plain, library.name):
            link = links / name
            if not link.exists():
                link.symlink_to(library)
    return links


def _droid(folder: Path) -> Path:
    from wvl_ros.sans.dataset import Dataset, DatasetFormat
    from wvl_ros.sans.sources import load_source

    episode = load_source("droid")
    assert episode is not None
    sizes = {camera: stack.shape[1:3] for camera, stack in episode.images.items()}
    dataset = Dataset.create(folder / "droid", DatasetFormat(sizes))
    for _ in range(2):
        dataset.append(episode)
    dataset.label(1, "near_success")
    return dataset.root


def _tabletop(folder: Path) -> Path:
    from wvl_ros.sans.collect import collect_episode
    from wvl_ros.sans.dataset import Dataset, DatasetFormat
    from wvl_ros.worlds.droid import CAMERAS
    from wvl_ros.worlds.tabletop import TabletopWorld

    world = TabletopWorld(image_height=96, image_width=128)
    dataset = Dataset.create(folder / "tabletop", DatasetFormat(dict.fromkeys(CAMERAS, (96, 128)), codec="lossless"))
    for seed, task in enumerate(("pick_place", "push")):
        dataset.append(collect_episode(world, task, seed, steps=45))
    return dataset.root


def _ours(root: Path) -> dict[str, Any]:
    """What LeRobot should see: one entry a frame."""
    from wvl_ros.sans.dataset import Dataset
    from wvl_ros.sans.store.format import video_file
    from wvl_ros.sans.store.video import read_frames

    dataset = Dataset.open(root)
    columns: dict[str, list[Any]] = {}
    for index, record in enumerate(dataset.records):
        episode, n = dataset.read(index), record.length
        actions = np.vstack([episode.action, episode.action[-1:]])
        rows: dict[str, Any] = {
            "observation.state": np.hstack([episode.joint_position, episode.gripper_position]).astype(np.float32),
            "observation.state.joint_position": episode.joint_position,
            "observation.state.cartesian_position": episode.cartesian_position,
            "observation.state.gripper_position": episode.gripper_position,
            "action": actions.astype(np.float32),
            "action.cartesian_position": actions[:, :6],
            "action.gripper_position": actions[:, 6:],
            "reward": np.concatenate([[0], episode.reward]).astype(np.float32),
            "next.done": np.arange(n) == n - 1,
            "timestamp": (np.arange(n) / episode.fps).astype(np.float32),
            "outcome": np.array([episode.outcome] * n),
            "outcome_source": np.array([episode.outcome_source] * n),
            "source": np.array([episode.source] * n),
            "iteration": np.full(n, episode.iteration),
            "task": np.array([episode.instruction] * n),
        }
        for camera, size in dataset.format.cameras.items():  # an image that is held gets finer in the video
            frames = list(read_frames(root / video_file(index, camera), size, n))
            assert np.array_equal(np.stack(frames[:: episode.image_stride]), episode.images[camera])
            rows[f"observation.images.{camera}"] = np.stack(frames)
        for name, values in rows.items():
            columns.setdefault(name, []).append(values)
    return {name: np.concatenate(values) for name, values in columns.items()}
