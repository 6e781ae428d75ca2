"""Instructions become word numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wvl_ros.policies.tokenizer import WordTokenizer, split_words

TEXTS = ["put the red cube on the yellow disk", "push the blue block to the green disk"]


def test_known_words_differ_and_unknown_ones_are_alike() -> None:
    tokenizer = WordTokenizer.from_texts(TEXTS)
    known = tokenizer.encode(TEXTS)
    assert known.shape == (2, tokenizer.max_words)
    assert (known[0] != known[1]).any()
    red, purple, orange = tokenizer.encode(["red", "purple", "orange"])[:, 0]
    assert red > 1
    assert purple == orange == 1


def test_case_and_punctuation_do_not_matter() -> None:
    tokenizer = WordTokenizer.from_texts(TEXTS)
    np.testing.assert_array_equal(
        tokenizer.encode(["Put the RED cube, on the yellow disk!"]), tokenizer.encode(TEXTS[:1])
    )


def test_a_vocabulary_without_its_special_words_is_refused() -> None:
    with pytest.raises(ValueError, match="<pad>"):
        WordTokenizer(["red", "blue"])


@given(st.text(max_size=300))
def test_any_text_encodes_to_padded_numbers(text: str) -> None:
    tokenizer = WordTokenizer.from_texts(TEXTS, max_words=5)
    row = tokenizer.encode([text])[0]
    words = min(5, len(split_words(text)))
    assert (row[:words] > 0).all()
    assert (row[words:] == 0).all()
