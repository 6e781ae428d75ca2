"""Whatever happens to a file of a dataset, verify finds it, and readers say so in a sentence."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wvl_ros.errors import DatasetError
from wvl_ros.sans.dataset import Dataset, DatasetFormat
from wvl_ros.sans.episode import Episode
from wvl_ros.sans.store.verification import verify

CAMERA = "wrist_image_left"


@pytest.fixture
def sound(tmp_path: Path, make_episode: Callable[..., Episode]) -> Path:
    """A dataset of two episodes."""
    root = tmp_path / "sound"
    dataset = Dataset.create(root, DatasetFormat({CAMERA: (32, 32)}))
    for seed in range(2):
        episode = make_episode(steps=10, seed=seed, size=32)
        episode.images = {CAMERA: episode.images[CAMERA]}
        dataset.append(episode)
    return root


def files_of(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file() and path.name != ".lock")


def read_all(root: Path) -> None:
    dataset = Dataset.open(root)
    for index in range(len(dataset)):
        dataset.read(index)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_is_found_and_named(sound: Path, data: st.DataObject) -> None:
    root = sound.parent / "damaged"
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(sound, root)
    path = data.draw(st.sampled_from(files_of(root)))
    content = bytearray(path.read_bytes())
    kind = data.draw(st.sampled_from(["flip", "cut", "longer", "missing", "foreign", "empty"]))
    if kind == "flip":
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(content)
    elif kind == "cut":
        path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    elif kind == "longer":
        path.write_bytes(content + b"\0")
    elif kind == "missing":
        path.unlink()
    elif kind == "foreign":
        path = path.with_name("foreign.bin")
        path.touch()
    else:
        path.write_bytes(b"")
    problems = verify(root)
    assert problems
    assert any(path.name in problem for problem in problems) or not path.exists()
    assert all(problem.endswith((".", "?")) for problem in problems)
    if kind != "foreign" and path.parts[-2] not in ("meta",):
        with pytest.raises(DatasetError):
            read_all(root)
    elif path.name == "sans.json":
        with pytest.raises(DatasetError):
            Dataset.open(root)
    else:  # what a reader of ours does not need
        read_all(root)


def test_two_problems_are_two_sentences(sound: Path, tmp_path: Path) -> None:
    root = tmp_path / "sans"
    shutil.copytree(sound, root)
    (root / "data/chunk-000/file-001.parquet").write_bytes(b"no")
    (root / f"videos/observation.images.{CAMERA}/chunk-000/file-000.mp4").unlink()
    (root / "meta/info.json").write_text("{}")
    dataset = Dataset.open(root)
    assert len(dataset.verify()) == 3
    assert len(dataset.read(0, images=False)) == 10
    with pytest.raises(DatasetError, match="missing"):
        dataset.read(0)
    with pytest.raises(DatasetError, match="checksum differs"):
        dataset.read(1, images=False)


def test_another_version_is_refused(sound: Path, tmp_path: Path) -> None:
    from wvl_ros.sans.store.checked_files import dump_signed, load_signed

    root = tmp_path / "sans"
    shutil.copytree(sound, root)
    path = root / "meta/sans.json"
    body = load_signed(path.read_bytes(), path)
    path.write_bytes(dump_signed(body | {"version": 2}))
    with pytest.raises(DatasetError, match="version 2"):
        Dataset.open(root)
    path.unlink()
    with pytest.raises(DatasetError, match="LeRobot dataset without"):
        Dataset.open(root)


def test_a_dataset_of_another_user_can_be_read(sound: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own may only be entered by who runs it
        Path(folder).chmod(0o755)
        root = Path(folder) / "sans"
        shutil.copytree(sound, root)
        (root / "meta/.lock").chmod(0o444)
        (root / "meta").chmod(0o555)
        with _no_root():
            dataset = Dataset.open(root)
            assert dataset.verify() == []
            with pytest.raises(DatasetError, match="locking"):
                dataset.label(0, "failure")
        (root / "meta").chmod(0o755)


@contextmanager
def _no_root() -> Iterator[None]:
    """Root may write everywhere: it is somebody else for a while."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)  # nobody
    try:
        yield
    finally:
        os.seteuid(before)


def test_verify_command(sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from wvl_ros.cli import main

    assert main(["verify", str(sound)]) == 0
    assert "all as they were written" in capsys.readouterr().out
    root = tmp_path / "sans"
    shutil.copytree(sound, root)
    (root / "meta/tasks.parquet").unlink()
    assert main(["verify", str(root)]) == 1
    assert "tasks.parquet' is missing" in capsys.readouterr().out
    assert main(["verify", str(tmp_path / "nothing")]) == 2
    assert "no SANS dataset" in capsys.readouterr().err
