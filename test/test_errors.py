"""Errors pass from worker processes to their pools as they are."""

from __future__ import annotations

import pickle

from wvl_ros.errors import UnknownNameError


def test_an_unknown_name_survives_a_process_boundary() -> None:
    error = UnknownNameError("task", "fold", ["push", "stack"])
    # As a process pool passes it on; only what was pickled here is read.
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is UnknownNameError
    assert str(again) == str(error) == "There is no task called 'fold'; choose one of: push, stack."
