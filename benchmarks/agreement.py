"""How well success in imagination tells success in the tabletop, over policies of different strength.

    python -m benchmarks.agreement --checkpoint base --checkpoint small ... [--episodes 50] [--runs runs/agreement]

Each policy plays the same starts in both worlds; a world whose answer for just these is in `runs` is not played again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.__main__ import RESULTS
from wvl_ros.evaluation.charts import Line, Panel, write_chart
from wvl_ros.training.checkpointing import write_json

TASKS = ("pick_place", "push", "stack")  # at sweeping the shipped base never succeeds, so there is nothing to compare
SEED = 1_700_000
WORLDS = ("tabletop", "imagined")


def run(checkpoints: Sequence[str], episodes: int = 50, runs: Path = Path("runs/agreement")) -> dict[str, Any]:
    """Plays what is missing and compares; draws `agreement.png` beside the results."""
    runs.mkdir(parents=True, exist_ok=True)
    found = {}
    for world in WORLDS:
        path = runs / f"{world}.json"
        if not _holds(path, checkpoints, episodes):
            chosen = [word for name in checkpoints for word in ("--checkpoint", name)]
            common = ("--task", *TASKS, "--seed", SEED, "--episodes", episodes, "--world", world)
            write_json(path, wvl("evaluate", "policy", *chosen, *common))
        found[world] = json.loads(path.read_text(encoding="utf-8"))
    figures = agreement(found["imagined"], found["tabletop"])
    panel = Panel("success in the tabletop", "success in imagination", [Line("", (0, 1), (0, 1))])
    for task in TASKS:
        pairs = [pair for name, pair in figures["pairs"].items() if name.endswith(f" {task}")]
        panel.lines.append(Line(task, [real for _, real in pairs], [imagined for imagined, _ in pairs], dots=True))
    write_chart(RESULTS / "agreement.png", [panel])
    return figures | {"episodes_each": episodes}


def _holds(path: Path, checkpoints: Sequence[str], episodes: int) -> bool:
    """Whether a file is the answer for these checkpoints (names or folders) and so many episodes of each task."""
    if not path.is_file():
        return False
    answer = json.loads(path.read_text(encoding="utf-8"))
    counts = {name: [task["episodes"] for task in facts["tasks"].values()] for name, facts in answer.items()}
    return counts == {name: [episodes] * len(TASKS) for name in checkpoints}


def agreement(imagined: dict[str, Any], real: dict[str, Any]) -> dict[str, Any]:
    """Pearson's r and gaps of the success rates in answers of `wvl evaluate policy --json`, over policies and tasks and
    over policies alone.
    """
    pairs = {
        f"{policy} {task}": tuple(answer[policy]["tasks"][task]["success_rate"] for answer in (imagined, real))
        for policy in real
        for task in TASKS
    }
    whole = {policy: tuple(answer[policy]["success_rate"] for answer in (imagined, real)) for policy in real}
    same = [
        [a["outcome"] == "success", b["outcome"] == "success"]
        for policy in real
        for a, b in zip(imagined[policy].get("results", []), real[policy].get("results", []), strict=True)
    ]
    return {
        **_compare(np.array(list(pairs.values()))),
        "by_policy": _compare(np.array(list(whole.values()))),
        "episodes_that_end_alike": round(float(np.mean([a == b for a, b in same])), 4) if same else None,
        "policies": whole,
        "pairs": pairs,
    }


def wvl(*words: object) -> dict[str, Any]:
    """What a command says with `--json`; its progress is shown as it goes."""
    command = [sys.executable, "-m", "wvl_ros.cli", *map(str, words), "--json"]
    print("wvl", *map(str, words), flush=True)
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(answer.stdout.splitlines()[-1]))


def _compare(rates: NDArray[np.float64]) -> dict[str, float]:
    """Of success rates (N, 2), imagined and real."""
    a, b = rates.T
    return {
        "pearson_r": round(float(np.corrcoef(a, b)[0, 1]), 4),
        "mean_gap": round(float((a - b).mean()), 4),
        "mean_absolute_gap": round(float(np.abs(a - b).mean()), 4),
    }


def main() -> None:
    """Prints and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", action="append", required=True, dest="checkpoints")
    parser.add_argument("--episodes", type=int, default=50, help="of each policy, task and world (default 50)")
    parser.add_argument("--runs", type=Path, default=Path("runs/agreement"))
    options = parser.parse_args()
    figures = run(options.checkpoints, options.episodes, options.runs)
    print(json.dumps(figures, indent=1))
    write_json(RESULTS / "agreement.json", {"name": "agreement", "figures": figures})


if __name__ == "__main__":
    main()
