"""`wvl export`: an episode of a SANS dataset, or of anything else that can be read, back to a bag."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from wvl_ros.errors import EpisodeError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("source", help="a SANS dataset (with --episode), DATASET#INDEX, or an episode of another kind")
    parser.add_argument("--episode", default="", help="index or id of the dataset's episode")
    parser.add_argument("--bag", type=Path, required=True, help="folder to write <episode id>/bag into")
    parser.add_argument("--namespace", default="/real", help="namespace of the topics (default /real)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Writes the bag; returns where it is and what it holds."""
    from wvl_ros.sans.export import export_bag
    from wvl_ros.sans.sources import find_episode, load_source

    text = f"{args.source}#{args.episode}" if args.episode else args.source
    found = find_episode(text)
    if found is not None:  # image by image: a long episode need not fit into memory
        dataset, index = found
        episode = dataset.read(index, images=False)
        images = {camera: dataset.images(index, camera) for camera in dataset.format.cameras}
        report = export_bag(episode, args.bag, images, namespace=args.namespace)
    else:
        loaded = load_source(text)
        if loaded is None:
            raise EpisodeError("A fresh reset cannot be exported; name a dataset and one of its episodes.")
        episode, report = loaded, export_bag(loaded, args.bag, namespace=args.namespace)
    return {
        "bag": str(report.bag),
        "episode_id": report.episode_id,
        "steps": len(episode) - 1,
        "messages": report.messages,
        "outcome": episode.outcome,
    }


def show(result: dict[str, Any]) -> None:
    """Prints where the bag is and how to play it."""
    print(f"{result['bag']}  ({result['steps']} steps, {result['messages']} messages)")
    print(f"Play it with: ros2 bag play {result['bag']}")
