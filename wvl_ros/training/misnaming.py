"""Instructions that name something else: what succeeded is no success by them.

Whoever recorded the episodes did as he was told, so nothing in them tells a reward head that it matters what is named.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence

import torch
from torch import Tensor

OPPOSITES = (("red", "blue"), ("yellow", "green"))  # of the tabletop's things


PAIRS = "pairs of words, such as [[red, blue]]"


def are_pairs(pairs: Sequence[Sequence[str]]) -> bool:
    """Whether settings are `PAIRS`."""
    return all(len(pair) == 2 and not isinstance(pair, str) for pair in pairs)


def add_opposites(parser: argparse.ArgumentParser) -> None:
    """Declares `--opposites`."""
    parser.add_argument(
        "--opposites",
        type=_pair,
        nargs="+",
        default=OPPOSITES,
        metavar="WORD:WORD",
        help="words of which an instruction means one and not the other: a success is none by the other "
        f"(default: {' '.join(':'.join(pair) for pair in OPPOSITES)})",
    )


def _pair(text: str) -> tuple[str, ...]:
    words = tuple(text.split(":"))
    if len(words) != 2 or not all(words):
        raise argparse.ArgumentTypeError(f"'{text}' is not a pair of words such as red:blue")
    return words


class Misnaming:
    """Exchanges words for their opposites.

    Args:
        opposites: pairs of words of which an instruction means one and not the other.
    """

    def __init__(self, opposites: Sequence[Sequence[str]] = OPPOSITES) -> None:
        self.other = {a.lower(): b for pair in opposites for a, b in (pair, pair[::-1])}

    def all(self, instruction: str) -> list[str]:
        """The instruction with each of its words that have one exchanged for the opposite, one at a time."""
        parts = re.split(r"(\W+)", instruction)
        places = [i for i, word in enumerate(parts) if word.lower() in self.other]
        return ["".join([*parts[:i], self.other[parts[i].lower()], *parts[i + 1 :]]) for i in places]

    def one(self, instruction: str, generator: torch.Generator) -> str:
        """One of `all`, or the instruction as it is where there are none."""
        found = self.all(instruction)
        return found[int(torch.randint(len(found), (), generator=generator))] if found else instruction


class Wordings:
    """What episodes are told by: successes now and then by an instruction that names something else.

    Args:
        instructions, outcomes: of every episode. share: of the successes that are misnamed.

    Attributes:
        texts: of every episode its own instruction, and the misnamed ones behind it; only its own where it is no
            success.
        count: int64 (E,), how many are misnamed.
    """

    def __init__(
        self, instructions: Sequence[str], outcomes: Sequence[str], misnaming: Misnaming, share: float
    ) -> None:
        self.share = share
        self.texts = [
            [text, *(misnaming.all(text) if outcome == "success" else ())]
            for text, outcome in zip(instructions, outcomes, strict=True)
        ]
        self.count = torch.tensor([len(texts) - 1 for texts in self.texts], dtype=torch.long)

    def draw(self, episode: Tensor, generator: torch.Generator) -> Tensor:
        """Which text (B,) each of some episodes (B,) is told by: 0 its own, for a `share` of those that can be
        misnamed another one.
        """
        other = torch.rand(len(episode), generator=generator) < self.share
        which = (torch.rand(len(episode), generator=generator) * self.count[episode]).long()
        return torch.where(other & (self.count[episode] > 0), 1 + which, torch.zeros_like(episode))

    def told(self, episode: Tensor, wording: Tensor) -> list[str]:
        """The texts."""
        return [self.texts[e][w] for e, w in zip(episode.tolist(), wording.tolist(), strict=True)]
