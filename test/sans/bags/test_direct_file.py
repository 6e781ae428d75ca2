"""A file written past the page cache holds the same bytes as any other."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wvl_ros.sans.bags import direct_file
from wvl_ros.sans.bags.direct_file import DirectFile

SIZES = st.one_of(st.integers(0, 5000), st.integers(1, 5).map(lambda n: n * 4096), st.just(70_000))


@pytest.mark.parametrize("folder", ["/tmp", "/dev/shm"])  # the second may have no O_DIRECT
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.tuples(SIZES, st.booleans()), max_size=12))
def test_writes_and_flushes_of_any_size(monkeypatch, tmp_path_factory, folder, sizes):
    monkeypatch.setattr(direct_file, "BUFFER", 1 << 14)
    base = tmp_path_factory.mktemp("x") if folder == "/tmp" else Path(folder)
    path = base / f"wvl_test_{tmp_path_factory.getbasetemp().name}"
    path.unlink(missing_ok=True)
    try:
        file, expected = DirectFile(path), b""
        for number, (size, flush) in enumerate(sizes):
            data = bytes([number + 1]) * size
            assert file.write(data) == size
            expected += data
            assert file.tell() == len(expected)
            if flush:
                file.flush()
                assert path.read_bytes() == expected
        file.close()
        assert path.read_bytes() == expected
        with pytest.raises(FileExistsError):
            DirectFile(path)
    finally:
        path.unlink(missing_ok=True)
