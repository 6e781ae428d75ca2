"""The one place where what a damaged file makes the libraries raise becomes a `BagError`."""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml
from mcap.exceptions import McapError
from rosbags.serde import SerdeError

from wvl_ros.errors import BagError

# What struct, numpy, pyarrow, Pillow, PyYAML, mcap, rosbags and sqlite3 raise at bytes that make no sense.
DAMAGE = (
    *(OSError, EOFError, ValueError, LookupError, ArithmeticError, TypeError, AttributeError, AssertionError),
    *(MemoryError, RecursionError, struct.error, sqlite3.Error, yaml.YAMLError, McapError, SerdeError, SyntaxError),
)


@contextmanager
def reading(path: Path | str) -> Iterator[None]:
    """Turns what goes wrong while a bag is read into a BagError that names the bag.

    Raises:
        BagError: in place of any of `DAMAGE`.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise BagError(f"The bag '{path}' cannot be read: there is no '{error.filename or path}'.") from error
    except DAMAGE as error:
        text = f"{error}".strip().split("\n")[0].rstrip(".") or type(error).__name__
        raise BagError(
            f"The bag '{path}' cannot be read: {text}; it is damaged or no bag (`wvl bag repair` saves what there is)."
        ) from error
