"""The wire format of openpi's policy server: msgpack, in which a map with bytes as keys stands for a numpy array.

An array is {b"__ndarray__": True, b"data": its bytes in C order, b"dtype": dtype.str, b"shape": shape}, a numpy scalar
{b"__npgeneric__": True, b"data": the number, b"dtype": dtype.str} (`openpi_client/msgpack_numpy.py`). Nothing in a
message is executed: only plain numbers and texts become arrays, and there is no pickle.
"""

from __future__ import annotations

from typing import Any

import msgpack
import numpy as np

_KINDS = "biufSU"  # bool, int, unsigned, float, bytes, text; not objects, records or complex numbers


def pack(message: Any) -> bytes:
    """A message as bytes: maps, lists, texts, numbers, numpy arrays and scalars, within each other.

    Raises:
        TypeError: something else is in it, or an array of objects, records or complex numbers.
    """
    data: bytes = msgpack.packb(message, default=_encode)
    return data


def unpack(data: bytes) -> Any:
    """What `pack` was given; arrays are copies, which may be written to.

    Raises:
        ValueError: it is no such message.
    """
    try:
        return msgpack.unpackb(data, object_hook=_decode)
    except ValueError:
        raise
    except (KeyError, TypeError, OverflowError, MemoryError, RecursionError, msgpack.UnpackException) as error:
        raise ValueError(f"{type(error).__name__} {error}") from error


def _encode(value: Any) -> dict[bytes, Any]:
    if not isinstance(value, np.ndarray | np.generic) or value.dtype.kind not in _KINDS:
        what = f"an array of {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
        raise TypeError(f"{what} cannot be sent to a policy server")
    if isinstance(value, np.generic):
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}


def _decode(value: dict[Any, Any]) -> Any:
    if b"__ndarray__" in value:
        shape = tuple(value[b"shape"])
        if any(not isinstance(length, int) or length < 0 for length in shape):
            raise ValueError(f"an array of the shape {shape}")
        return np.frombuffer(value[b"data"], _dtype(value)).reshape(shape).copy()
    if b"__npgeneric__" in value:
        return _dtype(value).type(value[b"data"])
    return value


def _dtype(value: dict[Any, Any]) -> np.dtype[Any]:
    dtype = np.dtype(value[b"dtype"])
    if dtype.kind not in _KINDS:
        raise ValueError(f"an array of {dtype}")
    return dtype
