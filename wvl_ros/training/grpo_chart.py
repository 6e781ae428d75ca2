"""The picture of a GRPO run: success imagined and real, the second judge, divergence and rate, update by update."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from wvl_ros.evaluation.charts import Line, Panel, write_chart
from wvl_ros.training.journal import LOG_FILE

FILE = "progress.png"


def write_progress(folder: Path) -> None:
    """Draws `progress.png` from the log of a run in its folder."""
    lines = [json.loads(text) for text in (folder / LOG_FILE).read_text(encoding="utf-8").splitlines()]
    updates = [line for line in lines if line["kind"] == "update"]
    checks = [line for line in lines if line["kind"] == "real"]
    if not updates:
        return
    success = Panel("updates", "share of successes", from_zero=True)
    success.lines += [
        _line(f"{world}, sampled", updates, f"{world}_success")
        for world in ("imagined", "tabletop")
        if f"{world}_success" in updates[0]
    ]
    tasks = [name for name in (checks[0] if checks else {}) if name not in _FACTS]
    for name in ("success", *tasks) if checks else ():
        success.lines.append(_line("real, deployed" if name == "success" else f"real, {name}", checks, name))
    doubt = Panel("updates", "imagined successes that the second judge turns down", from_zero=True)
    doubt.lines.append(_line("", updates, "disagreement"))
    step = Panel("updates", "divergence of an update", from_zero=True)
    step.lines.append(_line("", updates, "divergence"))
    write_chart(folder / FILE, [success, doubt, step])


_FACTS = ("kind", "step", "seconds", "success", "episodes", "update")


def _line(label: str, rows: list[dict[str, Any]], name: str) -> Line:
    told = [row for row in rows if name in row]
    return Line(label, [row["step"] for row in told], [row[name] for row in told])
