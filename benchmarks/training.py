"""Updates a second of the world model's training: one process on two cores, beside two processes on one each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

STEPS = 40
TASKS = "all"


def run() -> dict[str, Any]:
    """Trains the shipped size on 16 fresh tabletop episodes; the speed does not depend on which they are."""
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "data"
        words = ["collect", "--task", TASKS, "--episodes", "4", "--seed", "760000", "--out", str(data)]
        subprocess.run([sys.executable, "-m", "wvl_ros.cli", *words], check=True, capture_output=True)
        config = Path(scratch) / "config.yaml"
        config.write_text("training: {batch: 24, tracking_effort: 0.01, reward_fit_share: 0, teacher_forcing: 0}\n")
        one = [sys.executable, "-m", "wvl_ros.cli"]
        two = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node",
            "2",
            "-m",
            "wvl_ros.cli",
        ]
        figures: dict[str, Any] = {}
        for name, start, threads in (("one process, two threads", one, 2), ("two processes, one thread each", two, 1)):
            words = ["train", "world-model", "--data", str(data), "--config", str(config), "--steps", str(STEPS)]
            words += ["--out", str(Path(scratch) / name), "--threads", str(threads), "--json"]
            environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
            done = subprocess.run([*start, *words], check=True, capture_output=True, text=True, env=environment)
            result = json.loads(done.stdout.splitlines()[-1])
            figures[f"updates/s, batch 24, {name}"] = round(result["step"] / result["seconds"], 2)
        return figures
