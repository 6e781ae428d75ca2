"""Runs the benchmarks named on the command line, or all, and writes `results/NAME.json`."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

NAMES = {
    "tabletop": "steps a second, experts, determinism",
    "policy": "the small VLA: latency of a chunk, chunks/s in batches",
    "topics": "three 640x480 cameras at 30 Hz from the world node to a subscriber process",
    "overhead": "what ROS adds to a step of the bare world loop",
    "startup": "from `make imagine` to the first imagined frame",
    "recording": "three 640x480 cameras at 30 and 100 Hz into a bag (10 GB, temporary): lost images, CPU",
    "codec": "the datasets' codecs: PSNR, size, speed (WVL_DROID: a folder of more DROID episodes)",
    "windows": "windows of 16 frames x 3 cameras from the trainer's cache, and memory",
    "droid": "DROID episodes through SANS: numbers, PSNR, replay rate (WVL_DROID: a folder of more DROID episodes)",
    "large": "the real-size world models with random weights: frames/s, memory, share of the arithmetic limit (GPU)",
    "imagination": "the shipped world model on held-out episodes: images, outcome, action following",
    "imagination_speed": "imagined steps/s, cost and memory by batch and horizon, beside a diffusers pipeline",
}
ON_REQUEST = {
    "droid_world_model": "fine-tuned on all DROID episodes of a folder but one, for that one (WVL_DROID; half an hour)",
    "training": "updates/s of the world model's training: one process on two cores, two processes on one each",
    "finetune": "the world model fine-tuned on 50 new episodes: time, gain, forgetting (python -m benchmarks.finetune)",
    "ablations": "the world model without one of its parts, at equal budgets (python -m benchmarks.ablations)",
    "improvement": "a weak policy improved by GRPO and VLAW in imagination, beside controls (an hour and a half)",
    "clone": "from a clean clone to the first imagined frame (needs a package index)",
    "conversion": "a minute of three cameras converted, beside a plain loop over rosbags and imageio (needs an index)",
    "lerobot": "opens our datasets in the real LeRobot (downloads 3 GB; WVL_LEROBOT_ENVIRONMENT keeps it)",
    "fuzz": "mutated bags through the reader (python -m benchmarks.fuzz --minutes 10)",
    "fuzz_dataset": "mutated datasets through the reader (python -m benchmarks.fuzz_dataset --minutes 10)",
}
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Runs and reports."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    known = NAMES | ON_REQUEST
    what = ", ".join(f"{name} ({what})" for name, what in known.items())
    parser.add_argument("names", nargs="*", metavar="NAME", help=what)
    args = parser.parse_args()
    unknown = [name for name in args.names if name not in known]
    if unknown:
        parser.error(f"there is no benchmark called '{unknown[0]}'; choose from {', '.join(known)}")
    names = args.names or list(NAMES)
    if len(names) > 1:  # each in a process of its own: DDS reads its profile once, and threads are counted afresh
        codes = [subprocess.run([sys.executable, "-m", "benchmarks", name], check=False).returncode for name in names]
        sys.exit(max(codes))
    report(names[0], known[names[0]])


def report(name: str, what: str) -> None:
    """Runs one benchmark, prints its figures and writes them down."""
    print(f"\n== {name}: {what}", flush=True)
    result = importlib.import_module(f"benchmarks.{name}").run()
    for key, value in result.items():
        print(f"{key:44s} {value}", flush=True)
    facts = {
        "name": name,
        "date": time.strftime("%Y-%m-%d"),
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "figures": result,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
