"""One iteration of improvement of a weak policy, beside its controls: each on the same held-out starts in the tabletop.

    python -m benchmarks.improvement [--episodes 200] [--updates 40]

Every step is a `wvl` command that goes on where it was stopped; what is done is not done again (runs/improvement,
data/improvement). The base is cloned from 100 demonstrations a task. GRPO practises in the world model, and once, as
its bound, in the tabletop. VLAW's update, filtered behaviour cloning and the control are the same supervised update on
demonstrations with real rollouts and imagined ones, with the real rollouts alone, and with neither.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.__main__ import RESULTS
from benchmarks.agreement import TASKS, agreement, wvl
from wvl_ros.training.checkpointing import write_json

RUNS, DATA = Path("runs/improvement"), Path("data/improvement")
DEMONSTRATIONS, ROLLOUTS = 400, 400
ROLLOUT_SEED, TRUST_SEED, EVALUATION_SEED = 300_000, 960_000, 1_000_000


def run(
    episodes: int = 200, updates: int = 40, starts: str = "data/train", also: Sequence[str] = ("small",)
) -> dict[str, Any]:
    """Trains all policies and compares them; `also` are further ones whose success imagined and real is compared."""
    demonstrations, real, trust, base = (*(DATA / name for name in ("demonstrations", "real", "trust")), RUNS / "base")
    done: dict[str, Any] = {}
    done["base"] = wvl(
        "train", "policy", "--data", demonstrations, "--demonstrations", DEMONSTRATIONS, "--workers", 2, "--out", base,
        "--steps", 9000,
    )  # fmt: skip
    for folder, seed, count in ((real, ROLLOUT_SEED, ROLLOUTS), (trust, TRUST_SEED, 50)):
        for task in TASKS:
            wvl(
                "collect", "--policy", base, "--temperature", 2, "--task", task, "--episodes", count, "--seed", seed,
                "--workers", 2, "--out", folder,
            )  # fmt: skip
    practice = ("--init", base, "--tasks", *TASKS)
    for name, world in (("grpo", "imagined"), ("grpo_tabletop", "tabletop")):
        done[name] = wvl(
            "train", "policy", "--method", "grpo", *practice, "--data", starts, "--config", "config/policy_grpo.yaml",
            "--world", world, "--updates", updates, "--out", RUNS / name,
        )  # fmt: skip
    supervised = ("train", "policy", "--method", "vlaw", *practice)
    done["control"] = wvl(*supervised, "--data", demonstrations, "--learn-from", "real", "--out", RUNS / "control")
    done["filtered_bc"] = wvl(
        *supervised, "--data", demonstrations, real, "--learn-from", "real", "--out", RUNS / "filtered_bc"
    )
    done["vlaw"] = wvl(*supervised, "--data", demonstrations, real, "--validation", trust, "--out", RUNS / "vlaw")
    names = {name: str(RUNS / name) for name in done}
    found = {
        world: wvl(
            "evaluate", "policy", *(word for path in [*names.values(), *also] for word in ("--checkpoint", path)),
            "--task", *TASKS, "--seed", EVALUATION_SEED, "--episodes", episodes, "--world", world,
        )
        for world in ("tabletop", "imagined")
    }  # fmt: skip
    told = agreement(found["imagined"], found["tabletop"])
    for each in (result for results in found.values() for result in results.values()):
        del each["results"]
    figures: dict[str, Any] = {
        name: {"training": done[name], "imagined": found["imagined"][path]["tasks"], **found["tabletop"][path]}
        for name, path in names.items()
    }
    return figures | {"imagined_against_real": told}


def main() -> None:
    """Runs it with other settings, and writes the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.improvement", description=__doc__)
    parser.add_argument("--episodes", type=int, default=200, help="held-out starts a task (default 200)")
    parser.add_argument("--updates", type=int, default=40, help="of GRPO (default 40)")
    parser.add_argument("--starts", default="data/train", help="episodes whose first observations GRPO starts from")
    parser.add_argument("--also", nargs="*", default=["small"], help="policies whose success is compared as well")
    args = parser.parse_args()
    figures = run(args.episodes, args.updates, args.starts, args.also)
    print(json.dumps(figures, indent=1))
    write_json(RESULTS / "improvement.json", {"name": "improvement", "figures": figures})


if __name__ == "__main__":
    main()
