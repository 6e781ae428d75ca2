"""Single keys from a terminal, which is put back as it was on every way out."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios


class Keyboard:
    """Reads keys without Enter and without echo; nothing where stdin is no terminal. Ctrl-C stays what it is.

    Ctrl-Z is off meanwhile: it would stop `wvl up`, but not the robot.
    """

    def __init__(self, descriptor: int | None = None) -> None:
        self._descriptor = -1
        try:
            number = sys.stdin.fileno() if descriptor is None else descriptor
            if not os.isatty(number):
                return
            self._before = termios.tcgetattr(number)
            self._raw = termios.tcgetattr(number)
            self._raw[3] &= ~(termios.ECHO | termios.ICANON)
            self._raw[6][termios.VMIN], self._raw[6][termios.VTIME] = 0, 0
            self._raw[6][termios.VSUSP] = os.fpathconf(number, "PC_VDISABLE").to_bytes(1, "little")
            termios.tcsetattr(number, termios.TCSADRAIN, self._raw)
        except (OSError, ValueError, AttributeError, termios.error):  # no stdin, or its terminal is gone
            return
        self._descriptor = number

    @property
    def live(self) -> bool:
        """Whether there is a terminal."""
        return self._descriptor >= 0

    def typed(self) -> str:
        """What was typed since the last call, in lower case."""
        if not self.live:
            return ""
        try:
            if not select.select([self._descriptor], [], [], 0)[0]:
                return ""
            return os.read(self._descriptor, 64).decode("ascii", "replace").lower()
        except OSError:  # the terminal was closed
            self._descriptor = -1
            return ""

    def close(self) -> None:
        """Puts the terminal back."""
        if self.live:
            with contextlib.suppress(OSError, termios.error):
                termios.tcsetattr(self._descriptor, termios.TCSADRAIN, self._before)
            self._descriptor = -1
