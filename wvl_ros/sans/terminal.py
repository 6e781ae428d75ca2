"""Pictures and single keys in a terminal."""

from __future__ import annotations

import os
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image

_HALF = "\N{UPPER HALF BLOCK}"


def draw(picture: Image.Image, columns: int, lines: int) -> str:
    """A picture in 24-bit colour, two pixels a character, scaled to fit into so many columns and lines."""
    scale = min(columns / picture.width, 2 * lines / picture.height)
    width, height = max(1, int(picture.width * scale)), max(2, int(picture.height * scale) // 2 * 2)
    pixels = np.asarray(picture.convert("RGB").resize((width, height), Image.Resampling.BOX))
    rows = []
    for upper, lower in zip(pixels[::2].tolist(), pixels[1::2].tolist(), strict=True):
        cells = [
            f"\x1b[38;2;{a[0]};{a[1]};{a[2]};48;2;{b[0]};{b[1]};{b[2]}m{_HALF}"
            for a, b in zip(upper, lower, strict=True)
        ]
        rows.append("".join(cells) + "\x1b[0m")
    return "\n".join(rows)


@contextmanager
def pressed_keys() -> Iterator[Iterator[str]]:
    """The keys as they are pressed, without Enter; the terminal is as before afterwards. Ctrl-C still interrupts."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        yield _keys(descriptor)
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _keys(descriptor: int) -> Iterator[str]:
    while data := os.read(descriptor, 1):
        yield data.decode("ascii", "replace")
