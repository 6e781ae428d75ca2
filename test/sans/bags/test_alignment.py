"""Alignment by its properties: nothing is shifted in time, and nothing missing goes unnoticed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from wvl_ros.errors import BagError
from wvl_ros.sans.bags import alignment

SECOND = 10**9
times = arrays(np.int64, st.integers(1, 60), elements=st.integers(0, 5 * SECOND)).map(np.sort)


@given(times, times)
def test_hold_takes_the_latest_and_nearest_the_nearest(stamps, steps):
    for step, index in zip(steps, alignment.hold(stamps, steps), strict=True):
        before = stamps[stamps <= step]
        assert index == len(before) - 1
    for step, index in zip(steps, alignment.nearest(stamps, steps), strict=True):
        assert abs(stamps[index] - step) == np.abs(stamps - step).min()


@given(times, times, st.floats(0.01, 1.0))
def test_an_image_out_of_reach_is_refused_or_counted(stamps, steps, tolerance):
    far = np.abs(stamps[:, None] - steps).min(0) > tolerance * SECOND
    chosen, held = alignment.align_images("camera", stamps, steps, tolerance, allow_holes=True)
    assert held == far.sum()
    assert (np.abs(stamps[chosen] - steps)[~far] <= tolerance * SECOND).all()
    assert all(stamps[i] <= step or i == 0 for i, step in zip(chosen[far], steps[far], strict=True))
    if held:
        with pytest.raises(BagError, match=f"step {np.flatnonzero(far)[0]} .*--allow-holes"):
            alignment.align_images("camera", stamps, steps, tolerance, allow_holes=False)


@given(st.integers(2, 40), st.integers(1, 6))
def test_images_at_a_stride_are_known_as_such(count, stride):
    steps = alignment.grid(0, (count - 1) * SECOND // 15 + 5, 15)
    assert len(steps) == count
    found = alignment.image_stride(steps[::stride], steps)
    assert found == (stride if len(steps[::stride]) >= 3 else 1)
    if len(steps) > 4 * stride:
        assert alignment.image_stride(np.delete(steps, stride), steps) == 1  # one lost is no stride


def test_a_report_counts_what_is_missing():
    steps = alignment.grid(0, SECOND, 15)
    stamps = np.delete(np.arange(0, SECOND + 1, 20_000_000), [10, 11, 30])
    chosen, held = alignment.align_states("joints", stamps, steps, 0.2, allow_holes=False)
    report = alignment.report(stamps, steps, chosen, held, 3_000_000)
    assert (report.messages, report.rate_hz, report.drops, report.held) == (48, 50.0, 3, 0)
    assert (report.largest_gap_ms, report.clock_offset_ms) == (60.0, 3.0)
    assert report.skew_max_ms < 60.0


def test_clocks_that_jump_are_found_and_jitter_is_not():
    stamps = np.array([0, 30, 20, 60, 10, 40], np.int64) * 10_000_000
    assert alignment.backward_jumps(stamps).tolist() == [4]
    assert not len(alignment.backward_jumps(np.empty(0, np.int64)))
