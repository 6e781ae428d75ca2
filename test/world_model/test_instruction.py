"""Instructions as numbers, and instructions that ask for something else."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from wvl_ros.world_model.instruction import CONTRASTS, misname, words

COLOURS = [word for group in CONTRASTS for word in group]
TEXTS = st.lists(st.sampled_from(["put", "the", "cube", "on", "disk", *COLOURS]), max_size=9).map(" ".join)


@given(TEXTS, st.integers(0, 10**6))
def test_one_word_of_a_group_is_exchanged_for_another_of_it(text: str, seed: int) -> None:
    told = misname(text, CONTRASTS, torch.Generator().manual_seed(seed))
    changed = [(a, b) for a, b in zip(words(text), words(told), strict=True) if a != b]
    assert len(changed) == (1 if set(words(text)) & set(COLOURS) else 0)
    assert all(any({a, b} <= set(group) for group in CONTRASTS) for a, b in changed)


def test_all_else_stays_as_it_is_written() -> None:
    generator = torch.Generator().manual_seed(0)
    assert misname("Put the Red cube, please!", CONTRASTS, generator) == "Put the blue cube, please!"
    assert misname("Wipe the table.", CONTRASTS, generator) == "Wipe the table."
    assert misname("the blueish cube", CONTRASTS, generator) == "the blueish cube"
