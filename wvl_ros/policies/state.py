"""The numbers of an observation, checked."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from wvl_ros.errors import ObservationError


def state_part(observation: Mapping[str, np.ndarray], name: str, dim: int) -> NDArray[np.float64]:
    """One state of an observation, float64 (dim,).

    Raises:
        ObservationError: it is missing, misshapen or not a number.
    """
    if name not in observation:
        raise ObservationError(f"The observation lacks '{name}'; the policy needs it.")
    part = np.asarray(observation[name], float)
    if part.shape != (dim,) or not np.isfinite(part).all():
        raise ObservationError(f"The observation's '{name}' should be {dim} finite numbers, but is {part.tolist()}.")
    return part
