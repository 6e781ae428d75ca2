"""Finds every corruption of a dataset on disk, with a sentence for each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from wvl_ros.errors import DatasetError
from wvl_ros.sans import catalog
from wvl_ros.sans.checked_files import digest_file
from wvl_ros.sans.format import DRAFTS, JOURNAL, LOCK, SANS
from wvl_ros.sans.journal import locked

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
        with locked(root):
            state = catalog.load(root)
            present = _present(root)
    except DatasetError as error:
        return [str(error), *_changed_meta(root, str(error))]
    expected = dict(state.files)
    for row in state.rows:
        expected |= row["sha256"]
    problems = [
        f"'{root / name}' is not part of the dataset; remove it."
        for name in sorted(present - expected.keys() - {str(SANS)})
    ]
    for count, (name, sha256) in enumerate(expected.items()):
        problem = _problem(root, name, sha256)
        if problem and not _relabelled(root, name, sha256):
            problems.append(problem)
        if progress:
            progress(count + 1, len(expected))
    return problems


def _problem(root: Path, name: str, sha256: str) -> str:
    try:
        if digest_file(root / name) == sha256:
            return ""
    except DatasetError as error:
        return str(error)
    return f"'{root / name}' is not what was written there (its checksum differs); copy it again."


def _relabelled(root: Path, name: str, sha256: str) -> bool:
    """Whether a writer has changed the file since, and it is sound."""
    try:
        with locked(root):
            state = catalog.load(root)
            newest = dict(state.files)
            for row in state.rows:
                newest |= row["sha256"]
            return newest.get(name) != sha256 and not _problem(root, name, newest.get(name, ""))
    except DatasetError:
        return False


def _present(root: Path) -> set[str]:
    files = set()
    for folder in FOLDERS:
        for path in (root / folder).rglob("*"):
            name = path.relative_to(root)
            if path.is_dir() or name == LOCK or JOURNAL in name.parents or DRAFTS in name.parents:
                continue
            files.add(str(name))
    return files


def _changed_meta(root: Path, known: str) -> list[str]:
    """Further files in meta/ that are damaged when the dataset cannot be opened."""
    try:
        body = catalog.read_body(root)
    except DatasetError:
        return []
    problems = [_problem(root, str(name), str(sha256)) for name, sha256 in body["files"].items()]
    return [problem for problem in problems if problem and problem != known]
