"""Only shared memory that nobody holds is freed."""

from __future__ import annotations

import fcntl
import os

from wvl_ros.shared_memory import free_leftovers


def test_segments_of_the_dead_go_and_those_of_the_living_stay(tmp_path):
    names = ["fastdds_0123456789abcdef", "fastdds_00000000000000aa", "fastdds_00000000000000bb", "fastdds_port7410"]
    for name in names:
        (tmp_path / name).write_bytes(bytes(8192))
        (tmp_path / f"{name}_el").touch()
        os.utime(tmp_path / f"{name}_el", (0, 0))
    os.utime(tmp_path / f"{names[2]}_el")  # perhaps of a process that is just starting
    with (tmp_path / f"{names[0]}_el").open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert free_leftovers(tmp_path) == 8192
        assert {path.name for path in tmp_path.iterdir() if not path.name.endswith("_el")} == {*names} - {names[1]}
    assert free_leftovers(tmp_path) == 8192
    assert free_leftovers(tmp_path / "nowhere") == 0
