"""Where an episode can come from: one text names a bag, an episode file, a DROID folder or the shipped example."""

from __future__ import annotations

from pathlib import Path

from wvl_ros.errors import EpisodeError
from wvl_ros.sans.episode import Episode

FRESH = ("", "tabletop")
EXAMPLE = "droid"
EXAMPLE_FOLDER = Path(__file__).parent.parent / "examples" / "droid_episode"


def load_source(text: str) -> Episode | None:
    """The episode that a `source` argument names.

    Args:
        text: '' or 'tabletop' for a fresh reset; 'droid' for the DROID episode in this package; else the path of a
            bag (a folder with metadata.yaml, or the recording's folder around it), of an episode file (*.safetensors)
            or of a DROID episode (a folder with annotation.json).

    Returns:
        The episode, or None for a fresh reset.

    Raises:
        EpisodeError: nothing of the kind is there, or it is damaged.
    """
    if text in FRESH:
        return None
    path = EXAMPLE_FOLDER if text == EXAMPLE else Path(text).expanduser()
    if path.is_file() and path.suffix == ".safetensors":
        return Episode.load(path)
    if (path / "annotation.json").is_file():
        from wvl_ros.sans.droid import read_droid

        return read_droid(path)
    for folder in (path, path / "bag"):
        if (folder / "metadata.yaml").is_file():
            from wvl_ros.sans.bag import read_bag

            return read_bag(folder)
    raise EpisodeError(
        f"There is no episode at '{text}'; give a bag (a folder with metadata.yaml), an episode file (*.safetensors), "
        f"a DROID episode (a folder with annotation.json), '{EXAMPLE}' for the shipped one, or '' for a fresh reset."
    )


def source_text(source: str, start: int) -> str:
    """How a source and its start are written in one text: 'droid@30', or 'droid' for start 0."""
    return f"{source}@{start}" if source and start else source


def split_source(text: str) -> tuple[str, int]:
    """The source and the start in what `source_text` wrote."""
    source, at, start = text.rpartition("@")
    return (source, int(start)) if at and start.isdigit() else (text, 0)
