"""The package's own exceptions: each carries one sentence that says what is wrong and what to do."""

from __future__ import annotations

from collections.abc import Iterable


class WvlError(Exception):
    """Base of every error that a user can mend. The command line prints its sentence and exits with 2."""


class UnknownNameError(WvlError):
    """A task, world, policy, camera or the like that does not exist."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        self._given = (kind, name, tuple(known))
        super().__init__(f"There is no {kind} called '{name}'; choose one of: {', '.join(sorted(self._given[2]))}.")

    def __reduce__(self) -> tuple[type[UnknownNameError], tuple[str, str, tuple[str, ...]]]:
        return type(self), self._given  # so that it passes from a worker process to its pool


class ActionError(WvlError):
    """An action that cannot be executed: wrong length or not a number."""


class ObservationError(WvlError):
    """An observation that cannot be used: a missing camera, a wrong encoding, size or step."""


class EpisodeError(WvlError):
    """A recorded episode that cannot be read or that contradicts itself."""


class BagError(EpisodeError):
    """A bag that cannot be read, or whose streams make no episode: damaged, foreign, with holes or without a topic."""


class DatasetError(EpisodeError):
    """A SANS dataset that is damaged, locked, of another version, or that does not fit what is added to it."""


class CheckpointError(WvlError):
    """Weights that are missing, damaged or of another architecture."""


class PolicyServerError(WvlError):
    """A policy server that is away, too slow, fails, or whose answer cannot be used."""


class ConfigError(WvlError):
    """A setting out of its range or an unknown key in a YAML file."""
