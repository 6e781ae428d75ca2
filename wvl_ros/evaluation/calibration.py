"""Whether probabilities mean what they say: reliability table, expected calibration error, Brier score."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 10


def calibration(chances: NDArray[np.float64], truth: NDArray[np.bool_]) -> dict[str, Any]:
    """Of probabilities (N,) that something is true, and whether it was.

    Returns:
        `brier`: mean square error. `brier_of_base_rate`: of who always says the base rate. `ece`: mean gap between what
        was said and what came, over ten equal bins, weighted by their counts (Guo et al. 2017, for the positive class).
        `table`: of each bin that is not empty `low`, `high`, `count`, mean `said` and `came`, the share that was true.
        All None or empty without values.
    """
    if not len(chances):
        return {"brier": None, "brier_of_base_rate": None, "ece": None, "table": []}
    came = truth.astype(float)
    places = np.minimum((chances * BINS).astype(int), BINS - 1)
    table = []
    for place in np.unique(places):
        rows = places == place
        said, share = float(chances[rows].mean()), float(came[rows].mean())
        table.append(
            {
                "low": round(place / BINS, 2),
                "high": round((place + 1) / BINS, 2),
                "count": int(rows.sum()),
                "said": round(said, 4),
                "came": round(share, 4),
            }
        )
    gaps = [row["count"] * abs(row["said"] - row["came"]) for row in table]
    return {
        "brier": round(float(np.square(chances - came).mean()), 4),
        "brier_of_base_rate": round(float(came.mean() * (1 - came.mean())), 4),
        "ece": round(sum(gaps) / len(chances), 4),
        "table": table,
    }
