"""`wvl bag repair`: makes bags readable whose recorder was killed."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument(
        "paths",
        nargs="+",
        type=Path,
        metavar="PATH",
        help="a bag, a recording (also a hidden .part one), a bare .mcap or .db3 file, or a folder of recordings",
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Repairs; returns `bags` (path, state, messages, seconds, outcome), `errors`, and `exit_code` 2 if there are any.

    Raises:
        BagError: a path without any bag, or the only bag there is cannot be repaired.
    """
    from tqdm import tqdm

    from wvl_ros.errors import BagError
    from wvl_ros.sans.bags.repair import find_bags, repair

    found = [bag for path in args.paths for bag in find_bags(path)]
    bags: list[dict[str, Any]] = []
    errors = []
    for bag in tqdm(found, unit="bag", disable=None, leave=False):
        try:
            done = repair(bag)
        except BagError as error:
            if len(found) == 1:
                raise
            errors.append(str(error))
            continue
        bags.append(
            {
                "path": str(done.path),
                "state": done.state,
                "messages": done.messages,
                "seconds": round(done.seconds, 3),
                "outcome": done.outcome,
            }
        )
    return {"bags": bags, "errors": errors, "exit_code": 2 if errors else 0}


def show(result: dict[str, Any]) -> None:
    """A line for each bag that was touched."""
    for bag in result["bags"]:
        if bag["state"] == "repaired":
            outcome = f", {bag['outcome']}" if bag["outcome"] else ""
            print(f"{bag['path']}: saved {bag['messages']} messages, {bag['seconds']:.1f} s{outcome}")
        elif bag["state"] == "empty":
            print(f"{bag['path']}: held no message and was removed")
    whole = sum(bag["state"] == "whole" for bag in result["bags"])
    if whole:
        print(f"{whole} bags need no repair" if whole > 1 else "1 bag needs no repair")
    for error in result["errors"]:
        print(error)
