"""What the runner shows in a terminal: a live line, and a table at the end."""

from __future__ import annotations

import shutil
import sys
import time
from dataclasses import dataclass
from typing import TextIO


@dataclass
class EpisodeRow:
    """One episode as the runner sees it; paths are '' until the recorder says where they are."""

    number: int
    seed: int
    episode_id: str = ""
    step: int = 0
    max_steps: int = 0
    rate: float = 0.0
    reward: float = 0.0
    total_reward: float = 0.0
    success_probability: float = 0.0
    instruction: str = ""
    outcome: str = ""
    judged: str = ""  # what the operator said
    message: str = ""
    bag: str = ""
    video: str = ""
    contact_sheet: str = ""


class Progress:
    """A line that is rewritten on a terminal, and printed once a second elsewhere."""

    def __init__(self, episodes: int, stream: TextIO = sys.stdout, *, keys: bool = False) -> None:
        self._episodes, self._stream = episodes, stream
        self._keys = "[s]uccess [n]ear [f]ailure  " if keys else ""
        self._live = stream.isatty()
        self._shown, self._dirty, self._last = 0.0, False, ""

    def wait(self, text: str) -> None:
        """Says what is waited for."""
        self._line(text)

    def update(self, row: EpisodeRow) -> None:
        """Shows where an episode stands."""
        self._line(
            f"episode {row.number}/{self._episodes}  step {row.step}/{row.max_steps}  {row.rate:.1f} frames/s  "
            f"reward {row.reward:g}  P(success) {row.success_probability:.2f}  {self._keys}{row.instruction}"
        )

    def say(self, text: str) -> None:
        """A lasting line."""
        self._clear()
        print(text, file=self._stream, flush=True)

    def table(self, rows: list[EpisodeRow]) -> None:
        """Outcome and files of each episode."""
        self._clear()
        lines = [f"{'episode':>7}  {'seed':>10}  {'outcome':<12}  {'steps':>5}  {'reward':>6}  instruction"]
        for row in rows:
            outcome, total = row.outcome or "-", row.total_reward
            lines.append(
                f"{row.number:>7}  {row.seed:>10}  {outcome:<12}  {row.step:>5}  {total:>6g}  {row.instruction}"
            )
            notes = {"": row.message, "bag": row.bag, "video": row.video, "contact sheet": row.contact_sheet}
            lines += [f"{name:>20}  {text}" for name, text in notes.items() if text]
        finished = [row for row in rows if row.outcome]
        lines.append(f"{sum(row.outcome == 'success' for row in finished)} of {len(finished)} episodes succeeded.")
        print("\n".join(lines), file=self._stream, flush=True)

    def _line(self, text: str) -> None:
        now = time.monotonic()
        if self._live:
            width = shutil.get_terminal_size().columns - 1
            self._stream.write(f"\r\x1b[K{text[:width]}")
            self._stream.flush()
            self._dirty = True
        elif now - self._shown >= 1.0 and text != self._last:
            print(text, file=self._stream, flush=True)
            self._shown, self._last = now, text

    def _clear(self) -> None:
        if self._dirty:
            self._stream.write("\r\x1b[K")
            self._dirty = False
