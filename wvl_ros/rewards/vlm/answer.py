"""Yes or no from the logits of the answer's first token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wvl_ros.errors import CheckpointError

_WORDS = {"yes": ("yes", "Yes", "YES", " yes", " Yes"), "no": ("no", "No", "NO", " no", " No")}


@dataclass(frozen=True)
class YesNo:
    """The numbers of the tokens that mean `yes` and those that mean `no`."""

    yes: tuple[int, ...]
    no: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: Any) -> YesNo:
        """The spellings that are one token each.

        Raises:
            CheckpointError: there is none of one of the two.
        """
        found = {}
        for answer, spellings in _WORDS.items():
            encoded = [tokenizer.encode(text, add_special_tokens=False) for text in spellings]
            found[answer] = tuple(sorted({numbers[0] for numbers in encoded if len(numbers) == 1}))
            if not found[answer]:
                raise CheckpointError(f"The tokenizer has no token for '{answer}', so its model cannot be a judge.")
        return cls(**found)

    def probability(self, logits: Tensor) -> Tensor:
        """(B,) of yes against no, from logits (B, V)."""
        return torch.sigmoid(self._sum(logits, self.yes) - self._sum(logits, self.no))

    def mass(self, logits: Tensor) -> Tensor:
        """(B,) probability of yes and no together among all tokens, from logits (B, V)."""
        return torch.exp(self._sum(logits, self.yes + self.no) - logits.logsumexp(-1))

    def loss(self, logits: Tensor, success: Tensor) -> Tensor:
        """(B,) cross-entropy of the right answer, in any spelling, among all tokens; `success` bool (B,)."""
        right = torch.where(success, self._sum(logits, self.yes), self._sum(logits, self.no))
        return logits.logsumexp(-1) - right

    @staticmethod
    def _sum(logits: Tensor, tokens: tuple[int, ...]) -> Tensor:
        return logits[:, list(tokens)].logsumexp(-1)
