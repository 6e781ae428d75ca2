"""`wvl inspect`: what a SANS dataset or an episode holds, with a contact sheet."""

from __future__ import annotations

import argparse
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wvl_ros.errors import DatasetError, EpisodeError

if TYPE_CHECKING:
    from PIL import Image

    from wvl_ros.sans.episode import Episode

SHEET = "contact_sheet.png"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument(
        "path", help="a SANS dataset, a bag or its recording's folder, an episode file, a DROID folder, or 'droid'"
    )
    parser.add_argument("--episode", metavar="INDEX", help="of a dataset: only this one, by index or id, with details")
    parser.add_argument("--rows", type=int, default=16, help="episodes in a dataset's contact sheet (default 16)")
    parser.add_argument("--out", type=Path, help="the contact sheet's file (default: contact_sheet.png beside it)")
    parser.add_argument("--no-sheet", action="store_true", help="numbers only")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Inspects; returns the facts and the path of the contact sheet."""
    from wvl_ros.sans.store.format import is_dataset

    if args.rows < 1:
        raise EpisodeError(f"A contact sheet cannot have {args.rows} rows; use 1 or more.")
    path = Path(args.path).expanduser()
    if is_dataset(path) and args.episode is None:
        return _dataset(path, args)
    if args.episode is not None and not is_dataset(path):
        raise DatasetError(f"--episode picks one of a SANS dataset, but there is none at '{path}'.")
    text = args.path if args.episode is None else f"{args.path}#{args.episode}"
    return _episode(text, args)


def _dataset(path: Path, args: argparse.Namespace) -> dict[str, Any]:
    from wvl_ros.sans import overview
    from wvl_ros.sans.dataset import Dataset

    dataset = Dataset.open(path)
    result = overview.summary(dataset)
    if not args.no_sheet and len(dataset) and dataset.format.cameras:
        result["contact_sheet"] = str(_save(overview.contact_sheet(dataset, args.rows), args.out or path / SHEET))
    return result


def _episode(text: str, args: argparse.Namespace) -> dict[str, Any]:
    from wvl_ros.sans.render import contact_sheet
    from wvl_ros.sans.sources import find_episode, load_source

    episode = load_source(text)
    if episode is None:
        raise EpisodeError("There is nothing to inspect in a fresh reset; name a dataset, a bag or an episode.")
    result = _facts(episode)
    place = Path(text.rpartition("#")[0] or text).expanduser()
    name = SHEET
    if (found := find_episode(text)) is not None:
        dataset, index = found
        record = dataset.records[index]
        result |= {"index": index, "origin": record.origin, "fingerprint": record.fingerprint, "report": record.report}
        place, name = dataset.root, f"episode_{index:06d}.png"
    if not args.no_sheet and episode.images:
        default = place / name if place.is_dir() else place.with_suffix(".png") if place.is_file() else Path(name)
        result["contact_sheet"] = str(_save(contact_sheet(episode), args.out or default))
    return result


def _facts(episode: Episode) -> dict[str, Any]:
    import numpy as np

    grippers = episode.gripper_position
    moves = np.linalg.norm(np.diff(episode.cartesian_position[:, :3], axis=0), axis=1)
    return {
        "episode_id": episode.episode_id,
        "task": episode.task,
        "instruction": episode.instruction,
        "outcome": episode.outcome or "unlabelled",
        "outcome_source": episode.outcome_source,
        "source": episode.source,
        "policy": episode.policy,
        "world_model": episode.world_model,
        "iteration": episode.iteration,
        "steps": len(episode) - 1,
        "seconds": round((len(episode) - 1) / episode.fps, 2),
        "fps": episode.fps,
        "image_stride": episode.image_stride,
        "cameras": {name: f"{s.shape[0]} images {s.shape[2]}x{s.shape[1]}" for name, s in episode.images.items()},
        "action_space": episode.action_space,
        "reward_sum": float(episode.reward.sum()),
        "path_m": round(float(moves.sum()), 3),
        "gripper_range": [round(float(end), 3) for end in (grippers.min(), grippers.max())],
    }


def _save(sheet: Image.Image, path: Path) -> Path:
    part = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(part, format="PNG")
        part.replace(path)
    except OSError as error:
        raise EpisodeError(f"'{path}' cannot be written ({error.strerror}); choose another file with --out.") from error
    finally:
        with suppress(OSError):  # on a read-only disk
            part.unlink(missing_ok=True)
    return path


def show(result: dict[str, Any]) -> None:
    """Prints the facts: for a dataset a table of outcomes a task, then the rest, a line each."""
    from rich.console import Console
    from rich.table import Table

    if "tasks" in result:
        print(
            f"{result['dataset']}: {result['episodes']} episodes, {result['steps']} steps, {result['hours']} h at "
            f"{result['fps']:g} fps; {result['codec']}, {result['size_mb']['videos']} MB of video, "
            f"{result['size_mb']['data']} MB of numbers"
        )
        outcomes = list(result["outcomes"])
        table = Table("task", *outcomes, box=None)
        for task, counts in result["tasks"].items():
            table.add_row(task, *(str(counts.get(outcome, "")) for outcome in outcomes))
        if result["tasks"]:
            Console(soft_wrap=True).print(table)
    done = ("tasks", "dataset", "episodes", "steps", "hours", "fps", "codec", "size_mb", "outcomes")
    for name, value in result.items():
        if ("tasks" in result and name in done) or value in ("", {}, None):
            continue
        text = ", ".join(f"{key} {count}" for key, count in value.items()) if isinstance(value, dict) else value
        print(f"{name.replace('_', ' ')}: {text}")
