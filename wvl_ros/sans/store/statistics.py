"""Statistics of a dataset's columns in LeRobot's form: of an episode, and of all by aggregation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
NAMES = ("min", "max", "mean", "std", "count", *QUANTILES)
ALL, EVERY = 100, 5  # LeRobot samples about as many
LARGE = 300  # px; larger pictures are thinned out to about 150 px, as LeRobot does

Statistics = dict[str, NDArray[Any]]


def of_numbers(values: NDArray[Any]) -> Statistics:
    """Of a column (N,) or (N, D): arrays (1,) or (D,), and the count (1,)."""
    values = np.asarray(values, float).reshape(len(values), -1)
    quantiles = np.quantile(values, list(QUANTILES.values()), axis=0)
    return {
        "min": values.min(0),
        "max": values.max(0),
        "mean": values.mean(0),
        "std": values.std(0),
        "count": np.array([len(values)]),
    } | dict(zip(QUANTILES, quantiles, strict=True))


class PictureStatistics:
    """Counts the values of uint8 pictures (H, W, 3), one after the other: of the first `ALL` each, then of some."""

    def __init__(self) -> None:
        self._counts = np.zeros((3, 256), np.int64)
        self.pictures = 0

    def add(self, picture: NDArray[np.uint8]) -> None:
        """Takes one picture."""
        self.pictures += 1
        if self.pictures > ALL and self.pictures % EVERY:
            return
        size = max(picture.shape[:2])
        step = size // 150 if size >= LARGE else 1
        thin = picture[::step, ::step]
        for channel in range(3):
            self._counts[channel] += np.bincount(thin[..., channel].ravel(), minlength=256)

    def result(self) -> Statistics:
        """In 0..1 for each channel, arrays (3, 1, 1)."""
        values = np.arange(256) / 255.0
        total = self._counts.sum(1, keepdims=True)
        share = self._counts / total
        mean = share @ values
        variance = (share * (values - mean[:, None]) ** 2).sum(1)
        levels = np.cumsum(share, axis=1)
        seen = self._counts > 0
        stats = {
            "min": values[seen.argmax(1)],
            "max": values[255 - seen[:, ::-1].argmax(1)],
            "mean": mean,
            "std": np.sqrt(variance),
        }
        stats |= {name: values[(levels >= q - 1e-12).argmax(1)] for name, q in QUANTILES.items()}
        shaped = {name: value.reshape(3, 1, 1) for name, value in stats.items()}
        return shaped | {"count": np.array([self.pictures])}


def aggregate(parts: Sequence[Statistics]) -> Statistics:
    """Of all episodes from those of each; quantiles are averaged with the counts as weights, as LeRobot does."""
    counts = np.array([float(part["count"][0]) for part in parts])
    weights = counts / counts.sum()

    def average(name: str) -> NDArray[Any]:
        return np.asarray(np.tensordot(weights, np.stack([part[name] for part in parts]), 1))

    mean = average("mean")
    spread = [part["std"] ** 2 + (part["mean"] - mean) ** 2 for part in parts]
    return {
        "min": np.min([part["min"] for part in parts], axis=0),
        "max": np.max([part["max"] for part in parts], axis=0),
        "mean": mean,
        "std": np.sqrt(np.tensordot(weights, np.stack(spread), 1)),
        "count": np.array([int(counts.sum())]),
    } | {name: average(name) for name in QUANTILES}


def to_json(columns: Mapping[str, Statistics]) -> dict[str, dict[str, Any]]:
    """Plain data for meta/stats.json."""
    plain = {column: {name: stats[name].tolist() for name in NAMES} for column, stats in columns.items()}
    for stats in plain.values():
        stats["count"] = [int(count) for count in stats["count"]]
    return plain


def from_json(data: Mapping[str, Mapping[str, Any]]) -> dict[str, Statistics]:
    """What `to_json` gave.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: it is something else.
    """
    columns = {column: {name: np.asarray(stats[name], float) for name in NAMES} for column, stats in data.items()}
    for column, stats in columns.items():
        whole = all(np.isfinite(value).all() for value in stats.values())
        if not whole or stats["count"].shape != (1,) or stats["count"][0] < 1:
            raise ValueError(f"the statistics of {column} are no numbers")
    return columns
