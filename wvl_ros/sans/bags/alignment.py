"""Streams of different rates and clocks onto one grid of control steps. Pure numpy; times are int64 ns.

A state belongs to a step when it is the latest up to then (sample and hold), an image when it is the nearest within a
tolerance. What does not fit is a hole, and named.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wvl_ros.errors import BagError

Times = NDArray[np.int64]

SECOND = 1_000_000_000
JITTER = SECOND // 10  # by which stamps of one topic may run backwards: two publishers, late drivers
CLOCKS = SECOND // 2  # by which the topics' offsets of header to bag time may differ


@dataclass(frozen=True)
class StreamReport:
    """How one stream met the grid.

    Attributes:
        messages: within the episode. rate_hz: by the median interval.
        drops: messages that are missing, judged by the stream's own median interval.
        largest_gap_ms: between two messages. skew_mean_ms, skew_max_ms: between the step and what was taken for it.
        held: steps that have no message of their own in reach and hold another's.
        clock_offset_ms: median of recording time minus header stamp; None for messages without a header.
    """

    messages: int
    rate_hz: float
    drops: int
    largest_gap_ms: float
    skew_mean_ms: float
    skew_max_ms: float
    held: int
    clock_offset_ms: float | None

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def grid(first: int, last: int, rate: float) -> Times:
    """Steps at `rate` Hz from `first` up to `last`, both in ns."""
    count = int((last - first) * rate / SECOND + 1e-6) + 1
    return first + np.round(np.arange(max(count, 0)) * (SECOND / rate)).astype(np.int64)


def hold(times: Times, steps: Times) -> NDArray[np.int64]:
    """For each step the index of the latest of the sorted `times` up to it, -1 where there is none."""
    return np.searchsorted(times, steps, side="right") - 1


def nearest(times: Times, steps: Times) -> NDArray[np.int64]:
    """For each step the index of the nearest of the sorted `times` (at least one), the earlier of two."""
    after = np.searchsorted(times, steps, side="left")
    before = np.clip(after - 1, 0, len(times) - 1)
    after = np.clip(after, 0, len(times) - 1)
    return np.where(np.abs(times[after] - steps) < np.abs(steps - times[before]), after, before)


def backward_jumps(times: Times, jitter: int = JITTER) -> NDArray[np.int64]:
    """Indices, in the order of recording, of messages stamped more than `jitter` before the one recorded before."""
    return np.flatnonzero(np.diff(times) < -jitter) + 1


def gaps(times: Times, seconds: float) -> NDArray[np.int64]:
    """Indices of the first message after a pause of more than `seconds`, of sorted `times`."""
    return np.flatnonzero(np.diff(times) > seconds * SECOND) + 1


def clock_offset(header: Times, recorded: Times) -> int:
    """Median of recording time minus header stamp in ns."""
    return int(np.median(recorded - header)) if len(header) else 0


def common_clock(offsets: dict[str, int]) -> bool:
    """Whether the header stamps of all streams come from one clock, judged by their offsets to the bag's."""
    return not offsets or max(offsets.values()) - min(offsets.values()) <= CLOCKS


def image_stride(times: Times, steps: Times) -> int:
    """s when of all steps just 0, s, 2s, ... (at least three) have an image with exactly their stamp, else 1."""
    found = np.flatnonzero(np.isin(steps, times))
    if len(found) < 3:
        return 1
    stride = int(found[1])
    return stride if np.array_equal(found, np.arange(0, len(steps), stride)) else 1


def align_images(
    name: str, times: Times, steps: Times, tolerance: float, *, allow_holes: bool, start: int = 0
) -> tuple[NDArray[np.int64], int]:
    """For each step the index of its image, and how many steps have none of their own in reach.

    Args:
        name: of the stream, for errors.
        times: sorted.
        steps: sorted.
        tolerance: s.
        allow_holes: hold the last image where none is in reach (the next one before the first), instead of refusing.
        start: what to count seconds in errors from, ns.

    Raises:
        BagError: a hole, or no images.
    """
    if len(times) == 0:
        raise BagError(f"'{name}' has no images during the episode.")
    chosen = nearest(times, steps)
    far = np.abs(times[chosen] - steps) > tolerance * SECOND
    if far.any() and not allow_holes:
        step = int(np.flatnonzero(far)[0])
        where = f"step {step} ({(steps[step] - start) / SECOND:.2f} s into the episode)"
        raise BagError(
            f"'{name}' has no image within {tolerance * 1e3:.0f} ms of {where}; {int(far.sum())} of {len(steps)} steps "
            "lack one; use --allow-holes to hold the image before."
        )
    held = np.clip(hold(times, steps), 0, None)
    return np.where(far, held, chosen), int(far.sum())


def align_states(
    name: str, times: Times, steps: Times, gap: float, *, allow_holes: bool, start: int = 0
) -> tuple[NDArray[np.int64], int]:
    """For each step the index of the latest state up to it (the first state where the first step comes before it).

    Args:
        gap: s, how old a state may be, and by how much the first may come too late.
        name, times, steps, allow_holes, start: see `align_images`.

    Raises:
        BagError: a hole, or no states.
    """
    if len(times) == 0:
        raise BagError(f"'{name}' has no messages during the episode.")
    chosen = np.clip(hold(times, steps), 0, None)
    far = np.abs(steps - times[chosen]) > gap * SECOND
    if far.any() and not allow_holes:
        step = int(np.flatnonzero(far)[0])
        where = f"step {step} ({(steps[step] - start) / SECOND:.2f} s into the episode)"
        raise BagError(
            f"'{name}' is silent for more than {gap:g} s at {where}, and at {int(far.sum())} of {len(steps)} steps in "
            "all; use --allow-holes to hold the value before."
        )
    return chosen, int(far.sum())


def report(times: Times, steps: Times, chosen: NDArray[np.int64], held: int, offset: int | None) -> StreamReport:
    """The report of a stream, `times` sorted, of which `chosen` were taken for `steps`."""
    inside = times[(times >= steps[0] - SECOND // 2) & (times <= steps[-1] + SECOND // 2)]
    interval = np.diff(inside)
    interval = interval[interval > 0]
    median = float(np.median(interval)) if len(interval) else 0.0
    skew = np.abs(times[chosen] - steps) / 1e6
    return StreamReport(
        messages=len(inside),
        rate_hz=round(SECOND / median, 3) if median else 0.0,
        drops=int(np.sum(np.round(interval / median) - 1)) if median else 0,
        largest_gap_ms=round(float(interval.max(initial=0)) / 1e6, 3),
        skew_mean_ms=round(float(skew.mean()), 3),
        skew_max_ms=round(float(skew.max()), 3),
        held=held,
        clock_offset_ms=None if offset is None else round(offset / 1e6, 3),
    )
