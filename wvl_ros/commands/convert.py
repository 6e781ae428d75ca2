"""`wvl convert`: bags, DROID and LeRobot episodes and episode files into a SANS dataset."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from wvl_ros.errors import ConfigError

EPILOG = """examples:
  wvl convert recordings --out data/sans             every finished recording below a folder
  wvl convert bags/* --out data/sans --mapping zed_franka --instruction "put the cup on the plate"
  wvl convert droid/episode_* --out data/sans        DROID's raw-style episodes (15 Hz states, 5 Hz video)
  wvl convert droid_lerobot --out data/sans --size 192x320

Run it again after Ctrl-C or with more sources: what is in the dataset stays and is not converted again.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's options."""
    parser.epilog = EPILOG
    parser.add_argument(
        "sources",
        nargs="+",
        type=Path,
        metavar="SOURCE",
        help="bag, recording, episode or dataset, or a folder of them",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DATASET", help="SANS dataset to add to; made when it is not there"
    )
    parser.add_argument(
        "--mapping",
        default="auto",
        metavar="NAME|FILE",
        help="topics: auto (default), wvl_ros, realsense_franka, zed_franka, usb_cam_franka, or a YAML file",
    )
    parser.add_argument("--namespace", default="", help="take the topics below this namespace")
    parser.add_argument(
        "--codec",
        choices=("h264", "lossless"),
        default="",
        help="of the videos; default: the dataset's own, h264 for a new one",
    )
    parser.add_argument(
        "--size", type=_size, metavar="HxW", help="scale images to this height and width, for instance 192x320"
    )
    parser.add_argument(
        "--allow-holes",
        action="store_true",
        help="hold the last image or state where a stream has a hole, instead of refusing the episode",
    )
    parser.add_argument(
        "--split-gap",
        type=float,
        metavar="SECONDS",
        help="take a silence that long, or a clock that jumps back, as the end of an episode",
    )
    parser.add_argument("--workers", type=int, default=0, help="processes (default: one a core)")
    parser.add_argument("--outcome", default="", help="success, near_success, failure or aborted, said of all by you")
    parser.add_argument("--instruction", default="", help="for bags that do not tell theirs")
    parser.add_argument("--task", default="", help="likewise")
    parser.add_argument(
        "--iteration", type=int, default=None, help="of the improvement loop, in place of what the episodes say"
    )
    parser.add_argument("--source", default="", help="who acted and where, for instance teleop/robot, likewise")
    parser.add_argument("--policy", default="", help="name of the policy's checkpoint, likewise")
    parser.add_argument("--world-model", default="", help="name of the world model's checkpoint, likewise")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Converts what is not in the dataset yet."""
    from tqdm import tqdm

    from wvl_ros.sans.bags.bag_episode import AlignmentOptions
    from wvl_ros.sans.bags.mapping import AUTO, load_mapping
    from wvl_ros.sans.conversion import ConversionOptions, convert
    from wvl_ros.sans.conversion_sources import find_sources

    workers = args.workers or len(os.sched_getaffinity(0))
    if workers < 1 or (args.split_gap is not None and args.split_gap <= 0):
        raise ConfigError("--workers must be at least 1 and --split-gap positive.")
    if args.mapping != AUTO:
        load_mapping(args.mapping)  # a wrong name is one mistake, not one for each source
    alignment = AlignmentOptions(args.allow_holes, args.split_gap, args.size, args.task, args.instruction)
    options = ConversionOptions(
        args.mapping,
        args.namespace,
        args.codec,
        alignment,
        args.outcome,
        args.iteration,
        args.source,
        args.policy,
        args.world_model,
    )
    sources, unfinished = find_sources(args.sources, parts=workers)
    form = "{desc}{percentage:3.0f}%|{bar}| {n:.1f}/{total} [{elapsed}<{remaining}]"
    with tqdm(total=len(sources), desc="sources ", disable=None, bar_format=form) as bar:
        result = convert(sources, args.out, options, workers=workers, progress=bar.update)
    result.added.sort(key=lambda row: row["index"])
    for row in result.refused:
        episode = f" (episode {row['episode']})" if row.get("episode") else ""
        print(f"wvl: {row['error']}{episode}", file=sys.stderr)
    return {
        "out": str(args.out),
        "added": len(result.added),
        "kept": result.kept,
        "refused": result.refused,
        "unfinished": [str(path) for path in unfinished],
        "outcomes": dict(sorted(Counter(row["outcome"] or "unlabelled" for row in result.added).items())),
        "reports": result.added,
        "exit_code": 1 if result.refused else 0,
    }


def show(result: dict[str, Any]) -> None:
    """A line an episode, then the sums."""
    from rich.console import Console
    from rich.table import Table

    if result["reports"]:
        table = Table("episode", "from", "steps", "outcome", "skew, ms", "drops", "largest gap, ms", "held", box=None)
        for column in table.columns:
            column.no_wrap = True
        for row in result["reports"]:
            report = row["report"]
            facts = [str(report.get(name, "")) for name in ("skew_max_ms", "drops", "largest_gap_ms", "held")]
            outcome = row["outcome"] or "unlabelled"
            source = Path(row["source"])
            source = source.parent if source.name == "bag" else source  # a recording's folder has the name
            table.add_row(f"{row['index']} {row['episode']}", source.name, str(row["length"]), outcome, *facts)
        Console(width=max(Console().width, 160), soft_wrap=True).print(table)
    if result["unfinished"]:
        print(
            f"{len(result['unfinished'])} recordings are not finished and were left out; `wvl bag repair` mends those "
            "whose recorder was killed."
        )
    if "unlabelled" in result["outcomes"]:
        print(f"{result['outcomes']['unlabelled']} episodes have no outcome: `wvl label {result['out']}`.")
    print(f"{result['out']}: {result['added']} added, {result['kept']} kept, {len(result['refused'])} refused.")


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,4})x(\d{1,4})", text)
    if not found or min(int(found[1]), int(found[2])) < 16:
        raise argparse.ArgumentTypeError(f"'{text}' is not HEIGHTxWIDTH in pixels, for instance 192x320")
    return int(found[1]), int(found[2])
