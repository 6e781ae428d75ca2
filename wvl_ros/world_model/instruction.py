"""What the instruction says, as a small vector: word embeddings, an n-gram convolution, a maximum over the sentence."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

PADDING, UNKNOWN = 0, 1
_RESERVED = 2


def words(text: str) -> list[str]:
    """The lower-case words of an instruction."""
    return re.findall(r"[a-z0-9]+", text.lower())


def collect_vocabulary(instructions: Iterable[str]) -> list[str]:
    """All words of some instructions, in alphabetical order."""
    return sorted({word for text in instructions for word in words(text)})


class InstructionEncoder(nn.Module):
    """Instructions -> (B, dim). Words outside the vocabulary share one embedding.

    Args:
        vocabulary: the words known.
        dim: size of the result. max_words: longer instructions are cut.
    """

    def __init__(self, vocabulary: Sequence[str], dim: int = 48, max_words: int = 20) -> None:
        super().__init__()
        self.numbers = {word: i + _RESERVED for i, word in enumerate(vocabulary)}
        self.max_words = max_words
        self.embedding = nn.Embedding(len(vocabulary) + _RESERVED, 32, padding_idx=PADDING)
        self.ngrams = nn.Conv1d(32, 64, 3, padding=1)
        self.out = nn.Linear(64, dim)

    def tokens(self, instructions: Sequence[str]) -> Tensor:
        """Word numbers (B, max_words) int64, padded with 0."""
        result = torch.zeros(len(instructions), self.max_words, dtype=torch.long)
        for row, text in enumerate(instructions):
            numbers = [self.numbers.get(word, UNKNOWN) for word in words(text)][: self.max_words]
            result[row, : len(numbers)] = torch.tensor(numbers, dtype=torch.long)
        return result

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, dim) of word numbers (B, max_words); zeros for an empty instruction."""
        present = (tokens != PADDING)[:, None]
        grams = torch.relu(self.ngrams(self.embedding(tokens).transpose(1, 2)))
        summary = grams.masked_fill(~present, 0.0).amax(2)
        return self.out(summary)
