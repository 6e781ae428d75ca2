"""The wire format: what openpi's own packer sends is read, what we send is what it reads, and garbage stays garbage."""

from __future__ import annotations

import pickle
from contextlib import suppress
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from wvl_ros.policies.openpi.packing import pack, unpack

DTYPES = [np.bool_, np.uint8, np.int16, np.int64, np.float16, np.float32, np.float64]


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_array_on_the_wire_is_a_map_with_bytes_as_keys(dtype: type) -> None:
    array: np.ndarray = np.arange(6).reshape(2, 3).astype(dtype)
    raw = msgpack.unpackb(pack({"image": array.T, "prompt": "grüße"}))
    assert raw["prompt"] == "grüße"
    assert raw["image"] == {
        b"__ndarray__": True,
        b"data": array.T.tobytes(),  # C order, though the memory is not
        b"dtype": np.dtype(dtype).str,
        b"shape": [3, 2],
    }
    scalar = msgpack.unpackb(pack(array[1, 1]), strict_map_key=False)
    if dtype is np.float64:  # a float of Python's
        assert scalar == 4.0
    else:
        assert scalar == {b"__npgeneric__": True, b"data": array[1, 1].item(), b"dtype": np.dtype(dtype).str}


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text()
        | st.binary() | hnp.arrays(st.sampled_from(DTYPES), hnp.array_shapes(min_dims=0, min_side=0, max_side=3)),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=8,
    )
)  # fmt: skip
@settings(max_examples=100)
def test_messages_come_back_as_they_were(message: Any) -> None:
    same(unpack(pack(message)), message)


def same(got: Any, wanted: Any) -> None:
    if isinstance(wanted, np.ndarray):
        assert got.dtype == wanted.dtype
        assert got.flags.writeable
        np.testing.assert_array_equal(got, wanted)
    elif isinstance(wanted, dict):
        assert list(got) == list(wanted)
        for name, value in wanted.items():
            same(got[name], value)
    elif isinstance(wanted, list):
        assert len(got) == len(wanted)
        for a, b in zip(got, wanted, strict=True):
            same(a, b)
    else:
        assert type(got) is type(wanted)
        assert got == wanted


_fields = st.one_of(st.binary(max_size=20), st.text(max_size=6), st.integers(), st.lists(st.integers(-3, 9)), st.none())


@given(
    st.binary(max_size=60)
    | st.builds(
        lambda mark, data, dtype, shape: msgpack.packb({mark: True, b"data": data, b"dtype": dtype, b"shape": shape}),
        st.sampled_from([b"__ndarray__", b"__npgeneric__"]),
        _fields.filter(lambda value: not isinstance(value, int) or -(2**63) <= value < 2**64),
        st.sampled_from(["<f4", "|u1", "<U3", "|O", "<c8", "|V8", "f4,f4", "<M8[s]", "nonsense", "(", 7, None, [1]]),
        st.lists(st.integers(-(2**40), 2**62) | st.text(max_size=2) | st.none(), max_size=3) | st.text() | st.none(),
    )
)
@example(b"\xdd\xff\xff\xff\xff")
@example(b"\x81\xa1a" * 3000)
@settings(max_examples=300)
def test_garbage_is_a_value_error_at_worst(data: bytes) -> None:
    with suppress(ValueError):
        unpack(data)


class Trap:
    """What a pickle could do."""

    sprung = False

    def __reduce__(self) -> tuple[Any, ...]:
        return setattr, (Trap, "sprung", True)


@pytest.mark.parametrize("dtype", ["|O", "O", "|V8", "<c16"])
def test_objects_are_refused_and_nothing_is_unpickled(dtype: str) -> None:
    for mark in (b"__ndarray__", b"__npgeneric__"):
        message = {mark: True, b"data": pickle.dumps(Trap()), b"dtype": dtype, b"shape": [1]}
        with pytest.raises(ValueError, match="an array of"):
            unpack(msgpack.packb(message))
    assert not Trap.sprung


@pytest.mark.parametrize("value", [np.array([Trap()]), np.zeros(2, np.complex64), np.zeros(2, "f4,f4"), {1, 2}])
def test_what_cannot_be_sent_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match="cannot be sent"):
        pack({"it": value})


@pytest.mark.parametrize("shape", [[-1], [-2, -2], [3], [2, 2.0], ["4"], [], 4, None])
def test_a_shape_that_does_not_fit_is_refused(shape: Any) -> None:
    message = {b"__ndarray__": True, b"data": bytes(4), b"dtype": "|u1", b"shape": shape}
    with pytest.raises(ValueError, match=r"shape|Error"):
        unpack(msgpack.packb(message))
