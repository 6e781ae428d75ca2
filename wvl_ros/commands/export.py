"""`wvl export`: an episode back to a bag, or a SANS dataset in the layout that openpi trains from."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from wvl_ros.errors import ConfigError, EpisodeError

EPILOG = """\
--openpi writes a LeRobotDataset v2.1 as openpi's examples/droid does: pictures, joint_position, gripper_position and
actions (7 joint velocities relative to the measured joints, and the gripper), for its config pi05_droid_finetune.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.epilog = EPILOG
    parser.add_argument("source", help="a SANS dataset (with --episode), DATASET#INDEX, or an episode of another kind")
    parser.add_argument("--episode", default="", help="index or id of the dataset's episode")
    formats = parser.add_mutually_exclusive_group(required=True)
    formats.add_argument("--bag", type=Path, help="folder to write <episode id>/bag into")
    formats.add_argument("--openpi", type=Path, metavar="FOLDER", help="new folder for the dataset's successes")
    parser.add_argument("--namespace", default="/real", help="namespace of the bag's topics (default /real)")
    parser.add_argument("--all", action="store_true", help="with --openpi: all episodes, whatever their outcome")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Writes the bag or the folder; returns where it is and what it holds."""
    if args.openpi is not None:
        return _openpi(args)
    if args.all:
        raise ConfigError("--all goes with --openpi; a bag holds one episode.")
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


def _openpi(args: argparse.Namespace) -> dict[str, Any]:
    from tqdm import tqdm

    from wvl_ros.sans.dataset import Dataset
    from wvl_ros.sans.openpi_export import export_openpi

    if args.episode or "#" in args.source:
        raise ConfigError("--openpi exports a whole dataset; leave out the episode.")
    with tqdm(desc="episodes", unit="episode", disable=None, leave=False) as bar:

        def progress(total: int) -> None:
            bar.total = total
            bar.update()

        report = export_openpi(Dataset.open(args.source), args.openpi, everything=args.all, progress=progress)
    return {
        "openpi": str(report.root),
        "episodes": report.episodes,
        "frames": report.frames,
        "tasks": report.tasks,
        "left_out": report.left_out,
        "limited": report.limited,
        "response": report.response,
    }


def show(result: dict[str, Any]) -> None:
    """Prints where it is and how to use it."""
    if "openpi" not in result:
        print(f"{result['bag']}  ({result['steps']} steps, {result['messages']} messages)")
        print(f"Play it with: ros2 bag play {result['bag']}")
        return
    root = Path(result["openpi"]).resolve()
    print(f"{root}  ({result['episodes']} episodes, {result['frames']} frames, {result['tasks']} instructions)")
    for why, count in result["left_out"].items():
        print(f"Left out: {count} {why}")
    if result["limited"]:
        print(
            f"{result['limited']} commands lay further away than joint velocities of 1 lead, and were limited to that."
        )
    print(f"Train on it in openpi: repo_id={root.name} in pi05_droid_finetune, with HF_LEROBOT_HOME={root.parent}")
    if result["response"] is not None:
        print(f"Serve what was trained on it, and give its address as ws://HOST:8000?response={result['response']:.2g}")
