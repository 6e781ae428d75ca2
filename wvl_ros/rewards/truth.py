"""What is known of how an episode went, and from whom: judges are measured against it."""

from __future__ import annotations

from typing import Protocol

TOLD = ("success", "near_success", "failure")  # outcomes that say whether the instruction was achieved
# Outcome sources that are no judge's opinion; '' is of files from before outcomes had a source.
KNOWN = ("world", "operator", "dataset", "")


class Told(Protocol):
    """What an `Episode` and an `EpisodeEntry` both say."""

    @property
    def outcome(self) -> str:
        """'success', 'near_success', 'failure', 'aborted', or '' for unknown."""

    @property
    def outcome_source(self) -> str:
        """Who says so."""

    @property
    def source(self) -> str:
        """Who acted and where."""


def is_imagined(episode: Told) -> bool:
    """Whether it took place in a world model."""
    return episode.source.endswith("/imagined")


def is_true(episode: Told) -> bool:
    """Whether its outcome is the truth: of an imagined episode only a person's word is."""
    if episode.outcome not in TOLD or episode.outcome_source not in KNOWN:
        return False
    return not is_imagined(episode) or episode.outcome_source == "operator"
