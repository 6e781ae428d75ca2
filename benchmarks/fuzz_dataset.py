"""Mutated dataset files: each reader must give a sound episode or a named error, without a crash or a hang.

    python -m benchmarks.fuzz_dataset --minutes 10

Half of the mutations are put under right checksums again, so that what lies behind the checksums is reached too. The
readers run in a child process: a crash or a hang ends that, and is counted here.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import shutil
import tempfile
import time
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

CAMERA = "wrist_image_left"
PATIENCE = 30.0  # s for one mutation
NUMBERS = (b"0", b"-1", b"1e400", b"null", b"[]", b'""', b"99999999999999999999", b"{}", b"true", b"NaN")


def run(minutes: float = 1.0, seed: int = 0) -> dict[str, Any]:
    """Counts what the readers answered."""
    rng = random.Random(seed)
    outcomes: Counter[str] = Counter()
    bad: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        sound = make(folder / "sound")
        reader = Reader()
        began, count = time.monotonic(), 0
        while time.monotonic() - began < minutes * 60:
            root = folder / "mutated"
            shutil.rmtree(root, ignore_errors=True)
            shutil.copytree(sound, root)
            what = mutate(root, rng)
            signed = rng.random() < 0.5
            if signed:
                sign(root)
            answer = reader.ask(root)
            count += 1
            outcomes[answer if answer in ("crash", "hang", "sound") else answer.split(":")[0]] += 1
            if answer in ("crash", "hang") or answer.startswith("unnamed"):
                bad.append(f"mutation {count} (seed {seed}): {what}{', signed' if signed else ''}: {answer}")
        reader.close()
    return {"mutations": count, **dict(outcomes.most_common()), "bad": bad}


def make(root: Path) -> Path:
    """A small dataset with pictures."""
    from wvl_ros.sans.dataset import Dataset, DatasetFormat
    from wvl_ros.sans.episode import Episode

    rng = np.random.default_rng(0)
    dataset = Dataset.create(root, DatasetFormat({CAMERA: (32, 48)}))
    for n in (7, 12):
        episode = Episode(
            images={CAMERA: rng.integers(0, 256, ((n - 1) // 3 + 1, 32, 48, 3), np.uint8)},
            joint_position=rng.normal(size=(n, 7)),
            cartesian_position=rng.normal(size=(n, 6)),
            gripper_position=rng.random((n, 1)),
            action=rng.normal(size=(n - 1, 7)),
            reward=np.zeros(n - 1, np.float32),
            task="fuzz",
            instruction="do it",
            outcome="failure",
            image_stride=3,
            extra={"seed": n},
        )
        dataset.append(episode, report={"skew_max_ms": 1.5})
    return root


def mutate(root: Path, rng: random.Random) -> str:
    """Changes one to three files; says how."""
    said = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        files = sorted(path for path in root.rglob("*") if path.is_file() and path.name != ".lock")
        path = rng.choice(files)
        data: bytearray = bytearray(path.read_bytes())
        kind = rng.choice(("flip", "flip", "cut", "insert", "swap", "remove", "value", "other", "folder"))
        if kind == "flip":
            for _ in range(rng.choice((1, 1, 4, 32))):
                if data:
                    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        elif kind == "cut":
            del data[rng.randrange(len(data) + 1) :]
        elif kind == "insert":
            at = rng.randrange(len(data) + 1)
            data[at:at] = rng.randbytes(rng.choice((1, 8, 4096)))
        elif kind == "swap" and data:
            a, b = sorted(rng.randrange(len(data)) for _ in range(2))
            data = data[:a] + data[b:] + data[a:b]
        elif kind == "value" and path.suffix == ".json":
            words = bytes(data).split() or [b""]
            words[rng.randrange(len(words))] = rng.choice(NUMBERS)
            data = bytearray(b" ".join(words))
        elif kind == "other":
            data = bytearray(rng.choice(files).read_bytes())
        said.append(f"{kind} {path.relative_to(root)}")
        path.unlink()
        if kind == "folder":
            path.mkdir()
        elif kind != "remove":
            path.write_bytes(data)
    return ", ".join(said)


def sign(root: Path) -> None:
    """Puts right checksums over the mutated files, as far as the tables that hold them can still be read."""
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    from wvl_ros.sans.store.checked_files import digest, dump_signed
    from wvl_ros.sans.store.format import IMAGES, SANS, data_file, episodes_file, video_file

    def sums(name: Path) -> str:
        return digest((root / name).read_bytes()) if (root / name).is_file() else ""

    rows = root / episodes_file(0)
    try:
        table = pq.read_table(io.BytesIO(rows.read_bytes()))
        count = table.num_rows
        new = {
            "data/sha256": [sums(data_file(i)) for i in range(count)],
            f"videos/{IMAGES}{CAMERA}/sha256": [sums(video_file(i, CAMERA)) for i in range(count)],
        }
        for column, values in new.items():
            table = table.set_column(table.schema.get_field_index(column), column, pa.array(values, pa.string()))
        pq.write_table(table, rows)
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError):
        count = 0  # then its own new checksum is all there is to sign
    try:
        body = json.loads((root / SANS).read_bytes())
        body.pop("sha256", None)
        body["files"] = {name: sums(Path(name)) for name in body["files"]}
        (root / SANS).write_bytes(dump_signed(body))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return


class Reader:
    """A child process that reads datasets; a new one after each crash or hang."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._start()

    def _start(self) -> None:
        self._pipe, there = self._context.Pipe()
        self._process = self._context.Process(target=_serve, args=(there,), daemon=True)
        self._process.start()
        there.close()
        self._pipe.recv()

    def ask(self, root: Path) -> str:
        """'sound', the error's class and sentence, 'unnamed: ...', 'crash' or 'hang'."""
        try:
            self._pipe.send(str(root))
            if self._pipe.poll(PATIENCE):
                return str(self._pipe.recv())
            answer = "hang"
        except (EOFError, OSError):
            answer = "crash"
        self.close()
        self._start()
        return answer

    def close(self) -> None:
        """Ends the child."""
        self._process.kill()
        self._process.join()


def _serve(pipe: Connection) -> None:
    import av

    from wvl_ros.errors import WvlError
    from wvl_ros.sans.dataset import Dataset

    av.logging.set_level(None)
    pipe.send("ready")
    while True:
        root = pipe.recv()
        answers = []
        for work in (_read_all, _verify, _add):
            try:
                answers.append(work(Dataset, Path(root)))
            except WvlError as error:
                sentence = str(error).endswith((".", "?"))
                answers.append(f"{type(error).__name__ if sentence else 'unnamed'}: {error}")
            except Exception as error:  # what this program looks for
                answers.append(f"unnamed: {work.__name__} {type(error).__name__}: {error}")
        unnamed = [answer for answer in answers if answer.startswith("unnamed")]
        pipe.send(unnamed[0] if unnamed else answers[0])


def _read_all(kind: Any, root: Path) -> str:
    dataset = kind.open(root)
    for index in range(len(dataset)):
        episode = dataset.read(index)
        assert len(episode.images[CAMERA]) == (len(episode) - 1) // episode.image_stride + 1
    return "sound"


def _verify(kind: Any, root: Path) -> str:
    from wvl_ros.sans.store.verification import verify

    assert all(isinstance(problem, str) for problem in verify(root))
    return "sound"


def _add(kind: Any, root: Path) -> str:
    dataset = kind.open(root)
    dataset.label(0, "success")
    dataset.append(dataset.read(0))
    return "sound"


def main() -> None:
    """Runs for a while; exit code 1 when anything but a sound episode or a named error came."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz_dataset", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    result = run(args.minutes, args.seed)
    print(json.dumps(result, indent=2))
    raise SystemExit(bool(result["bad"]))


if __name__ == "__main__":
    main()
