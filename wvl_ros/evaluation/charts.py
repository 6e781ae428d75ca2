"""Charts as picture files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

_FEW = 25  # points of a line that are marked


@dataclass
class Line:
    """Points of equally many `x` and `y`; `dots` draws them without a line between."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    dots: bool = False


@dataclass
class Panel:
    """One set of axes with its lines."""

    x_label: str
    y_label: str
    lines: list[Line] = field(default_factory=list)
    log_x: bool = False
    from_zero: bool = False


def write_chart(path: Path | str, panels: Sequence[Panel]) -> None:
    """Panels side by side, in the format of the file's ending (png, svg, pdf); whole or not at all."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * len(panels), 3.4), layout="constrained")
    for number, panel in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), number + 1)
        for line in panel.lines:
            marker = "o" if line.dots or len(line.x) < _FEW else ""
            axes.plot(line.x, line.y, label=line.label, marker=marker, markersize=4, linestyle="" if line.dots else "-")
        axes.set_xlabel(panel.x_label)
        axes.set_ylabel(panel.y_label)
        axes.grid(alpha=0.3)
        if panel.log_x:
            axes.set_xscale("log", base=2)
        if panel.from_zero:
            axes.set_ylim(bottom=0)
        if any(line.label for line in panel.lines):
            axes.legend(fontsize="small")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        figure.savefig(part, dpi=110)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
