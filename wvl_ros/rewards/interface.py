"""The one interface of everybody who says whether an episode achieved its instruction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from wvl_ros.sans.episode import Episode


@runtime_checkable
class Judge(Protocol):
    """Anything that turns episodes into probabilities of success.

    Attributes:
        name: what the user calls it, one of `registry.JUDGES`.
        threshold: an episode whose probability is above it is taken for a success.
    """

    name: str
    threshold: float

    def probability(self, episodes: Sequence[Episode]) -> NDArray[np.float64]:
        """(B,) that each episode achieved its instruction.

        Raises:
            EpisodeError: an episode cannot be judged: it lacks a camera, is too short, or nobody has labelled it.
        """
