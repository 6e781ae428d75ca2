"""`wvl render`: an MP4 and a contact sheet of any episode."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from wvl_ros.errors import EpisodeError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument(
        "source", help="a bag or its recording's folder, an episode file, a DROID folder, DATASET#INDEX, or 'droid'"
    )
    parser.add_argument(
        "--out", type=Path, help="folder for rollout.mp4 and contact_sheet.png (default: where the source is)"
    )
    parser.add_argument(
        "--reference", default="", help="an episode to show above; by default what the source started from"
    )
    parser.add_argument("--start", type=int, default=0, help="step of the reference to start from (default 0)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Renders; returns the paths of the video and the contact sheet."""
    from wvl_ros.sans.render import Reference, find_reference, render
    from wvl_ros.sans.sources import load_source

    episode = load_source(args.source)
    if episode is None:
        raise EpisodeError(
            "There is nothing to render in a fresh reset; name a bag, an episode file or a DROID folder."
        )
    if args.reference:
        other = load_source(args.reference)
        reference = Reference(other, args.start) if other else None
    else:
        reference = find_reference(args.source, episode)
    video, sheet = render(episode, args.out or _default_folder(args.source), reference)
    return {"video": str(video), "contact_sheet": str(sheet), "steps": len(episode) - 1, "outcome": episode.outcome}


def show(result: dict[str, Any]) -> None:
    """Prints the two paths."""
    print(f"{result['video']}\n{result['contact_sheet']}")


def _default_folder(source: str) -> Path:
    path = Path(source).expanduser()
    if path.is_file():
        return path.with_suffix("")
    if (path / "metadata.yaml").is_file():
        return path.parent
    return path if path.is_dir() else Path("renderings") / path.name.replace("#", "-")
