"""A short, seeded run of the bag fuzzer; ten minutes of it are `python -m benchmarks.fuzz`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_mutated_bags_give_an_episode_or_a_named_error():
    command = [sys.executable, "-m", "benchmarks.fuzz", "--cases", "300", "--minutes", "2", "--seed", "11"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "BagError" in done.stdout
    assert "episode" in done.stdout
