"""One iteration of improvement of a weak policy, beside its controls: each on the same held-out starts in the tabletop.

    python -m benchmarks.improvement [--episodes 200] [--updates 40]

Every step is a `wvl` command that goes on where it was stopped; what is done is not done again (runs/improvement,
data/improvement). The base is cloned from 100 demonstrations a task. GRPO practises in the shipped world model; VLAW's
update, filtered behaviour cloning and the control are the same supervised update on demonstrations with 50 real
rollouts a task and imagined ones, with the real rollouts alone, and with neither.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.__main__ import RESULTS
from wvl_ros.training.checkpointing import write_json

RUNS, DATA = Path("runs/improvement"), Path("data/improvement")
TASKS = ("pick_place", "push", "stack")  # at sweeping the base never succeeds, so practice has nothing to compare
DEMONSTRATIONS, ROLLOUTS = 400, 50
ROLLOUT_SEED, EVALUATION_SEED = 250_000, 1_000_000


def run(episodes: int = 200, updates: int = 40, starts: str = "data/train") -> dict[str, Any]:
    """Trains all policies and compares them."""
    demonstrations, real, base = DATA / "demonstrations", DATA / "real", RUNS / "base"
    done: dict[str, Any] = {}
    done["base"] = _wvl(
        "train", "policy", "--data", demonstrations, "--demonstrations", DEMONSTRATIONS, "--workers", 2, "--out", base,
        "--steps", 9000,
    )  # fmt: skip
    for task in TASKS:
        _wvl(
            "collect", "--policy", base, "--task", task, "--episodes", ROLLOUTS, "--seed", ROLLOUT_SEED, "--workers", 2,
            "--out", real,
        )  # fmt: skip
    practice = ("--init", base, "--tasks", *TASKS)
    done["grpo"] = _wvl(
        "train", "policy", "--method", "grpo", *practice, "--data", starts, "--config", "config/policy_grpo.yaml",
        "--updates", updates, "--out", RUNS / "grpo",
    )  # fmt: skip
    supervised = ("train", "policy", "--method", "vlaw", *practice)
    done["control"] = _wvl(*supervised, "--data", demonstrations, "--learn-from", "real", "--out", RUNS / "control")
    done["filtered_bc"] = _wvl(
        *supervised, "--data", demonstrations, real, "--learn-from", "real", "--out", RUNS / "filtered_bc"
    )
    done["vlaw"] = _wvl(*supervised, "--data", demonstrations, real, "--validation", real, "--out", RUNS / "vlaw")
    names = {name: str(RUNS / name) for name in done}
    checkpoints = [word for path in names.values() for word in ("--checkpoint", path)]
    found = _wvl(
        "evaluate", "policy", *checkpoints, "--task", *TASKS, "--seed", EVALUATION_SEED, "--episodes", episodes,
    )  # fmt: skip
    for name, path in names.items():
        del found[path]["results"]
        done[name] = {"training": done[name], **found[path]}
    return done


def _wvl(*words: object) -> dict[str, Any]:
    """What a command says with `--json`; its progress is shown as it goes."""
    command = [sys.executable, "-m", "wvl_ros.cli", *map(str, words), "--json"]
    print("wvl", *map(str, words), flush=True)
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(answer.stdout.splitlines()[-1]))


def main() -> None:
    """Runs it with other settings, and writes the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.improvement", description=__doc__)
    parser.add_argument("--episodes", type=int, default=200, help="held-out starts a task (default 200)")
    parser.add_argument("--updates", type=int, default=40, help="of GRPO (default 40)")
    parser.add_argument("--starts", default="data/train", help="episodes whose first observations GRPO starts from")
    args = parser.parse_args()
    figures = run(args.episodes, args.updates, args.starts)
    print(json.dumps(figures, indent=1))
    write_json(RESULTS / "improvement.json", {"name": "improvement", "figures": figures})


if __name__ == "__main__":
    main()
