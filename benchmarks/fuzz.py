"""Feeds mutated bags to the reader: `python -m benchmarks.fuzz --minutes 10 [--seed 0]`.

Valid bags (ours and a lab's; MCAP and sqlite3; all compressions) are flipped, cut, spliced and given absurd lengths.
A child process reads each one; it may give an episode or a WvlError. Everything else is a finding: another exception,
a signal, more than `SECONDS`, or memory that grows by more than `MEMORY`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import resource
import shutil
import struct
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rosbags.rosbag2 import CompressionMode, StoragePlugin

SECONDS, MEMORY = 20.0, 1 << 30
_NUMBERS = (
    0,
    1,
    2,
    0x7F,
    0xFF,
    0xFFFF,
    1 << 20,
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 1,
    1 << 40,
    (1 << 63) - 1,
    (1 << 64) - 1,
)
_WORDS = (
    "null",
    "-1",
    "[]",
    "{}",
    "'x'",
    "1e400",
    "../../etc/passwd",
    "*a",
    "&a",
    "!!python/object:os.system",
    "\0",
    "é",
)


def seed_bags(folder: Path) -> list[Path]:
    """Small valid bags of every kind, in folders of their own."""
    from dataclasses import replace

    import numpy as np

    from benchmarks.robot_bag import write_robot_bag
    from wvl_ros.sans.droid import read_droid
    from wvl_ros.sans.export import export_bag
    from wvl_ros.sans.sources import EXAMPLE_FOLDER
    from wvl_ros.worlds.recorded import resize

    kinds = {
        "mcap": (StoragePlugin.MCAP, CompressionMode.NONE),
        "chunks": (StoragePlugin.MCAP, CompressionMode.STORAGE),
        "messages": (StoragePlugin.MCAP, CompressionMode.MESSAGE),
        "file": (StoragePlugin.MCAP, CompressionMode.FILE),
        "sqlite": (StoragePlugin.SQLITE3, CompressionMode.NONE),
    }
    for name, (storage, compression) in kinds.items():
        write_robot_bag(folder / name, 0.8, size=(16, 24), storage=storage, compression=compression)
    episode = read_droid(EXAMPLE_FOLDER)
    few = 10
    small = replace(
        episode,
        images={c: np.stack([resize(i, 16, 24) for i in s[: (few - 1) // 3 + 1]]) for c, s in episode.images.items()},
        joint_position=episode.joint_position[:few],
        cartesian_position=episode.cartesian_position[:few],
        gripper_position=episode.gripper_position[:few],
        action=episode.action[: few - 1],
        reward=episode.reward[: few - 1],
        episode_id="own",
    )
    export_bag(small, folder)
    return [*(folder / name for name in kinds), folder / "own" / "bag"]


def mutate(rng: random.Random, bags: list[Path], target: Path) -> str:
    """Copies one of the bags to `target` and damages it; returns what was done."""
    bag = rng.choice(bags)
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(bag, target)
    data = [path for path in target.iterdir() if path.name != "metadata.yaml"]
    path = target / "metadata.yaml" if rng.random() < 0.2 else rng.choice(data)
    content = bytearray(path.read_bytes())
    done = []
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        change = rng.choice(_CHANGES if path.suffix != ".yaml" else (*_CHANGES, _word, _word, _word))
        done.append(change.__name__.strip("_"))
        content = change(rng, content, bags)
    path.write_bytes(content)
    return f"{bag.name}: {path.name}: {', '.join(done)}"


def _flip(rng: random.Random, data: bytearray, bags: list[Path]) -> bytearray:
    for _ in range(rng.choice((1, 1, 4, 32))):
        if data:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return data


def _cut(rng: random.Random, data: bytearray, bags: list[Path]) -> bytearray:
    return data[: rng.randrange(len(data) + 1)]


def _remove(rng: random.Random, data: bytearray, bags: list[Path]) -> bytearray:
    start = rng.randrange(len(data) + 1)
    del data[start : start + rng.choice((1, 8, 100, 5000))]
    return data


def _repeat(rng: random.Random, data: bytearray, bags: list[Path]) -> bytearray:
    start = rng.randrange(len(data) + 1)
    part = data[start : start + rng.choice((1, 9, 100, 5000))]
    return data[:start] + part * rng.choice((2, 3, 50)) + data[start:]


def _number(rng: random.Random, data: bytearray, bags: list[Path]) -> bytearray:
    """An absurd number somewhere, of 2, 4 or 8 bytes."""
    form = rng.choice(("<H", "<I", "<Q", ">I"))
    size = struct.calcsize(form)
    if len(data) > size:
        start = rng.randrange(len(data) - size)
        data[start : start + size] = struct.pack(form, rng.choice(_NUMBERS) & ((1 << (8 * size)) - 1))
    return data


def _length(rng: random.Random, data: bytearray, bags: list[Path]) -> bytearray:
    """An absurd length or field in one of an MCAP file's records."""
    if not data.startswith(b"\x89MCAP"):
        return _number(rng, data, bags)
    starts, at = [], 8
    while at + 9 <= len(data) - 8:
        starts.append(at)
        (length,) = struct.unpack_from("<Q", data, at + 1)
        # sometimes into a chunk's records instead of past it
        at += 9 + 48 if data[at] == 6 and rng.random() < 0.7 else 9 + length
    if starts:
        start = rng.choice(starts) + rng.choice((0, 1, 1, 9, 11, 13, 17, 25, 33, 37, 41))
        size = rng.choice((1, 2, 4, 8))
        data[start : start + size] = (rng.choice(_NUMBERS) & ((1 << (8 * size)) - 1)).to_bytes(size, "little")
    return data


def _splice(rng: random.Random, data: bytearray, bags: list[Path]) -> bytearray:
    other = rng.choice([path for path in rng.choice(bags).iterdir() if path.name != "metadata.yaml"]).read_bytes()
    start, size = rng.randrange(len(other)), rng.choice((16, 200, 4096, 100_000))
    here = rng.randrange(len(data) + 1)
    return data[:here] + other[start : start + size] + data[here + size * rng.randrange(2) :]


def _word(rng: random.Random, data: bytearray, bags: list[Path]) -> bytearray:
    """Another value in the metadata."""
    lines = data.split(b"\n")
    row = rng.randrange(len(lines))
    key, colon, _ = lines[row].partition(b":")
    lines[row] = rng.choice((b"", lines[row] * 2, key + colon + b" " + rng.choice(_WORDS).encode()))
    return bytearray(b"\n".join(lines))


_CHANGES: tuple[Callable[..., bytearray], ...] = (
    _flip,
    _flip,
    _cut,
    _remove,
    _repeat,
    _number,
    _length,
    _length,
    _splice,
)


def read(path: Path) -> str:
    """What the reader makes of a bag: 'episode', or the name of the WvlError."""
    from wvl_ros.errors import WvlError
    from wvl_ros.sans.bags.bag_episode import AlignmentOptions
    from wvl_ros.sans.bags.reader import bag_episodes
    from wvl_ros.sans.bags.streams import Bag

    try:
        with Bag(path) as bag:
            found = "no episode"
            for _, load in bag_episodes(bag, options=AlignmentOptions(allow_holes=True, split_gap=5.0)):
                load().load()
                found = "episode"
        return found
    except WvlError as error:
        return type(error).__name__


def _child(pipe: Connection) -> None:
    import warnings

    warnings.simplefilter("ignore")
    read(Path("/nowhere"))
    while True:
        path = pipe.recv()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            result = read(Path(path))
        except BaseException:  # a finding, whatever it is
            result = "EXCEPTION\n" + traceback.format_exc(limit=-6)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
        pipe.send(f"MEMORY {grown >> 20} MiB" if grown > MEMORY else result)


def fuzz(seconds: float, seed: int, keep: Path | None = None, most: int = 10**9) -> dict[str, Any]:
    """Runs for some seconds or up to `most` cases; findings are copied to `keep`."""
    context = multiprocessing.get_context("spawn")
    counts: Counter[str] = Counter()
    findings: list[dict[str, str]] = []
    rng = random.Random(seed)
    slowest = 0.0
    with tempfile.TemporaryDirectory(prefix="wvl-fuzz-") as name:
        folder = Path(name)
        bags = seed_bags(folder)
        child = None
        end = time.monotonic() + seconds
        while time.monotonic() < end and sum(counts.values()) < most:
            if child is None:
                pipe, there = context.Pipe()
                child = context.Process(target=_child, args=(there,), daemon=True)
                child.start()
                there.close()
            done = mutate(rng, bags, folder / "case")
            began = time.monotonic()
            result = "TIME"
            try:
                pipe.send(str(folder / "case"))
                if pipe.poll(SECONDS if sum(counts.values()) else 60.0):
                    result = pipe.recv()
            except (EOFError, BrokenPipeError, ConnectionResetError):
                child.join()
                result = f"SIGNAL {child.exitcode}"
            slowest = max(slowest, time.monotonic() - began if counts else 0.0)
            counts[result.split("\n")[0]] += 1
            if result.isupper() or result.split()[0].isupper():
                findings.append({"case": done, "result": result})
                if keep is not None:
                    shutil.copytree(folder / "case", keep / f"finding_{len(findings)}" / "bag")
                    (keep / f"finding_{len(findings)}" / "result.txt").write_text(f"{done}\n{result}\n")
                child.kill()
                child = None
        if child is not None:
            child.kill()
    return {
        "cases": sum(counts.values()),
        "results": dict(counts),
        "slowest_s": round(slowest, 2),
        "findings": findings,
    }


def run(minutes: float = 10.0, seed: int = 0, keep: Path | None = None, most: int = 10**9) -> dict[str, Any]:
    """Figures of a run."""
    result = fuzz(minutes * 60, seed, keep, most)
    for finding in result["findings"][:20]:
        print(f"{finding['case']}: {finding['result'].strip().splitlines()[-1]}")
    return {
        "mutated bags read": result["cases"],
        "episodes, named errors": ", ".join(f"{n} {name}" for name, n in sorted(result["results"].items())),
        "slowest": f"{result['slowest_s']} s",
        "crashes, hangs, unnamed errors": len(result["findings"]),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for the bags that were findings")
    parser.add_argument("--cases", type=int, default=10**9, help="stop after so many")
    options = parser.parse_args()
    figures = run(options.minutes, options.seed, options.keep, options.cases)
    for key, value in figures.items():
        print(f"{key:44s} {value}")
    raise SystemExit(1 if figures["crashes, hangs, unnamed errors"] else 0)
