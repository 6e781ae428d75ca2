"""`wvl verify`: checks every file of a SANS dataset."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.epilog = (
        "Compares each file with its checksum, after completing what a writer that died has left. Exits with 1 when a "
        "file is changed, missing or foreign."
    )
    parser.add_argument("dataset", type=Path, help="folder of the dataset")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Verifies; returns the problems as sentences, the number of files and episodes, and the exit code."""
    from tqdm import tqdm

    from wvl_ros.errors import DatasetError
    from wvl_ros.sans.dataset import is_dataset
    from wvl_ros.sans.store.verification import verify

    root = args.dataset.expanduser()
    if not is_dataset(root) and not (root / "meta").is_dir():
        raise DatasetError(f"There is no SANS dataset at '{root}'; make one with wvl convert.")
    with tqdm(desc="files", unit="file", disable=not sys.stderr.isatty(), leave=False) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        problems = verify(root, progress)
        files = bar.total or 0
    return {"dataset": str(root), "files": files, "problems": problems, "exit_code": int(bool(problems))}


def show(result: dict[str, Any]) -> None:
    """Prints the problems, or that there are none."""
    for problem in result["problems"]:
        print(problem)
    if result["problems"]:
        count = len(result["problems"])
        print(f"{count} problem{'s' if count > 1 else ''} in '{result['dataset']}'.")
    else:
        print(f"'{result['dataset']}': {result['files']} files, all as they were written.")
