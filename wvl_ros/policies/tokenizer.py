"""Instructions as word numbers: a vocabulary of words, kept in the checkpoint's config."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

PAD, UNKNOWN = "<pad>", "<unk>"
_WORD = re.compile(r"[a-z0-9]+")


def split_words(text: str) -> list[str]:
    """Words of an instruction, lower case, without punctuation."""
    return _WORD.findall(text.lower())


class WordTokenizer:
    """Words to numbers; number 0 is padding, 1 any word that is not in the vocabulary."""

    def __init__(self, vocabulary: Sequence[str], max_words: int = 20) -> None:
        """Takes the words in the order of their numbers, starting with `<pad>` and `<unk>`."""
        if list(vocabulary[:2]) != [PAD, UNKNOWN]:
            raise ValueError(f"A vocabulary starts with {PAD} and {UNKNOWN}.")
        self.vocabulary = tuple(vocabulary)
        self.max_words = max_words
        self._numbers = {word: number for number, word in enumerate(vocabulary)}

    @classmethod
    def from_texts(cls, texts: Iterable[str], max_words: int = 20) -> WordTokenizer:
        """A vocabulary of every word in the texts, in alphabetical order."""
        words = sorted({word for text in texts for word in split_words(text)})
        return cls([PAD, UNKNOWN, *words], max_words)

    def __len__(self) -> int:
        """Size of the vocabulary."""
        return len(self.vocabulary)

    def encode(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Word numbers (B, max_words) of B texts, padded with 0; words beyond `max_words` are dropped."""
        numbers = np.zeros((len(texts), self.max_words), np.int64)
        for row, text in zip(numbers, texts, strict=True):
            words = split_words(text)[: self.max_words]
            row[: len(words)] = [self._numbers.get(word, 1) for word in words]
        return numbers
