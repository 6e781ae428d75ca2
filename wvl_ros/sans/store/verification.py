"""Finds every corruption of a dataset on disk, with a sentence for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

from wvl_ros.errors import DatasetError
from wvl_ros.sans.store import catalog
from wvl_ros.sans.store.checked_files import digest_file, read_checked
from wvl_ros.sans.store.format import (
    DRAFTS,
    EPISODES_PER_FILE,
    JOURNAL,
    LOCK,
    SANS,
    DatasetFormat,
    data_file,
    episodes_file,
    video_file,
)
from wvl_ros.sans.store.journal import ReadOnlyError, locked

FOLDERS = ("data", "videos", "meta")  # beside these a user may keep what they like


def verify(root: Path, progress: Callable[[int, int], None] | None = None) -> list[str]:
    """Compares every file with its checksum, after completing what a dead writer has left.

    A file that is flipped, cut, missing or foreign is found. Writers may be at work meanwhile.

    Args:
        root: the dataset's folder.
        progress: called with the number of files checked and their total.

    Returns:
        One sentence a corruption, which names the file; empty when all is well.
    """
    try:
        expected, problems = _expected(root)
    except DatasetError as error:
        return [str(error)]
    for count, (name, sha256) in enumerate(expected.items()):
        problem = _problem(root, name, sha256)
        if problem and not _changed_since(root, name, sha256):
            problems.append(problem)
        if progress:
            progress(count + 1, len(expected))
    return problems


def _expected(root: Path) -> tuple[dict[str, str], list[str]]:
    """Checksums of all files at one moment, and what is wrong with their names.

    Raises:
        DatasetError: meta/sans.json does not tell.
    """
    catalog.read_body(root)  # says so when there is no dataset at all
    with ExitStack() as stack:
        with suppress(ReadOnlyError):  # then no change of its own is to be completed here
            stack.enter_context(locked(root))
        body = catalog.read_body(root)
        format, count, meta = DatasetFormat.from_json(body.get("dataset")), body["episodes"], body["files"]
        names = {str(SANS)} | {str(name) for name in meta}
        for index in range(count):
            names |= {str(data_file(index)), *(str(video_file(index, camera)) for camera in format.cameras)}
        present = _present(root)
        expected = {str(name): str(sha256) for name, sha256 in meta.items()}
        for number in range(-(-count // EPISODES_PER_FILE)):
            expected |= _of_episodes(root, number, format, meta)
    problems = [f"'{root / name}' is not part of the dataset; remove it." for name in sorted(present - names)]
    problems += [f"'{root / name}' is missing; copy the dataset again." for name in sorted(names - present)]
    return {name: sha256 for name, sha256 in expected.items() if name in present}, problems


def _of_episodes(root: Path, number: int, format: DatasetFormat, meta: Mapping[str, str]) -> dict[str, str]:
    """Checksums of data and videos; none when their table is damaged, which its own checksum tells."""
    name = episodes_file(number)
    sums: dict[str, str] = {}
    try:
        table = catalog.parse_rows(read_checked(root, name, str(meta.get(str(name)))), root / name)
        for _, row in catalog.entries(table, format, root / name):
            sums |= row["sha256"]
    except DatasetError:
        return {}
    return sums


def _problem(root: Path, name: str, sha256: str) -> str:
    try:
        if digest_file(root / name) == sha256:
            return ""
    except DatasetError as error:
        return str(error)
    return f"'{root / name}' is not what was written there (its checksum differs); copy it again."


def _changed_since(root: Path, name: str, sha256: str) -> bool:
    """Whether a writer has changed the file meanwhile, and it is sound."""
    try:
        newest = _expected(root)[0].get(name)
    except DatasetError:
        return False
    return newest is not None and newest != sha256 and not _problem(root, name, newest)


def _present(root: Path) -> set[str]:
    files = set()
    for folder in FOLDERS:
        for path in (root / folder).rglob("*"):
            name = path.relative_to(root)
            if path.is_dir() or name == LOCK or JOURNAL in name.parents or DRAFTS in name.parents:
                continue
            files.add(str(name))
    return files
