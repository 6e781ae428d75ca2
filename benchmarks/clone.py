"""From a clean clone to the first imagined frame: downloads, compiles, runs. Needs a package index and some minutes."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.startup import ROOT, first_frame


def run() -> dict[str, Any]:
    """Minutes of the first `make imagine` in a fresh clone, and seconds of the second."""
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "wvl_ros"
        subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
        first, _ = first_frame(clone, folder)
        second, _ = first_frame(clone, folder)
    return {"first run, to the first imagined frame": f"{first / 60:.1f} min", "second run": f"{second:.1f} s"}
