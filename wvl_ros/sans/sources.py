"""Where an episode can come from: one text names a dataset's episode, a bag, a file, a DROID folder or the example."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from wvl_ros.errors import EpisodeError
from wvl_ros.sans.episode import Episode

if TYPE_CHECKING:
    from wvl_ros.sans.dataset import Dataset

FRESH = ("", "tabletop")
EXAMPLE = "droid"
EXAMPLE_FOLDER = Path(__file__).parent.parent / "examples" / "droid_episode"


def load_source(text: str) -> Episode | None:
    """The episode that a `source` argument names.

    Args:
        text: '' or 'tabletop' for a fresh reset; 'droid' for the DROID episode in this package; else the path of a
            bag (a folder with metadata.yaml, or the recording's folder around it), of an episode file (*.safetensors),
            of a DROID episode (a folder with annotation.json), or of a SANS dataset with one of its episodes:
            'data/sans#3', or its id after the '#'.

    Returns:
        The episode, or None for a fresh reset.

    Raises:
        EpisodeError: nothing of the kind is there, or it is damaged.
    """
    if text in FRESH:
        return None
    if (found := find_episode(text)) is not None:
        dataset, index = found
        return dataset.read(index)
    path = EXAMPLE_FOLDER if text == EXAMPLE else Path(text).expanduser()
    if path.is_file() and path.suffix == ".safetensors":
        return Episode.load(path)
    if (path / "annotation.json").is_file():
        from wvl_ros.sans.droid import read_droid

        return read_droid(path)
    for folder in (path, path / "bag"):
        if (folder / "metadata.yaml").is_file():
            from wvl_ros.sans.bags.reader import read_bag

            return read_bag(folder)
    raise EpisodeError(
        f"There is no episode at '{text}'; give a bag (a folder with metadata.yaml), an episode file (*.safetensors), "
        "a DROID episode (a folder with annotation.json), DATASET#INDEX for one of a SANS dataset, "
        f"'{EXAMPLE}' for the shipped one, or '' for a fresh reset."
    )


def find_episode(text: str) -> tuple[Dataset, int] | None:
    """The dataset and the index that 'DATASET#INDEX' or 'DATASET#EPISODE_ID' names; None when it names none.

    An index goes before an id that is a number, and a negative one counts from the end.

    Raises:
        EpisodeError: the dataset has no such episode, or none was named.
    """
    folder, separator, name = text.rpartition("#")
    path = Path(folder if separator else text).expanduser()
    if not (path / "meta").is_dir():  # only now is pyarrow loaded
        return None
    from wvl_ros.sans.dataset import Dataset, is_dataset

    if not is_dataset(path):
        return None
    dataset = Dataset.open(path)
    return dataset, episode_index(dataset, name if separator else "")


def episode_index(dataset: Dataset, name: str) -> int:
    """The index of an episode by index or id.

    Raises:
        EpisodeError: there is no such episode.
    """
    count = len(dataset)
    if name.removeprefix("-").isdigit() and -count <= int(name) < count:
        return int(name) % count
    for record in dataset.records:
        if name and record.episode_id == name:
            return record.index
    known = f"it has the episodes 0 to {count - 1}" if count else "it holds none yet"
    what = f"has no episode '{name}'" if name else "is a whole dataset: name one of its episodes, as in DATASET#0"
    raise EpisodeError(f"'{dataset.root}' {what}; {known}.")


def source_text(source: str, start: int) -> str:
    """How a source and its start are written in one text: 'droid@30', or 'droid' for start 0."""
    return f"{source}@{start}" if source and start else source


def split_source(text: str) -> tuple[str, int]:
    """The source and the start in what `source_text` wrote."""
    source, at, start = text.rpartition("@")
    return (source, int(start)) if at and start.isdigit() else (text, 0)
