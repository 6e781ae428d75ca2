"""Instructions that name something else, and which episodes are told by them."""

from __future__ import annotations

import argparse

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wvl_ros.training.misnaming import OPPOSITES, Misnaming, Wordings, add_opposites
from wvl_ros.world_model.instruction import words

COLORS = [word for pair in OPPOSITES for word in pair]
TEXTS = st.lists(st.sampled_from(["put", "the", "cube", "on", "disk", *COLORS]), max_size=9).map(" ".join)


@given(TEXTS, st.integers(0, 10**6))
def test_one_colour_at_a_time_is_exchanged_for_the_other(text: str, seed: int) -> None:
    misnaming = Misnaming()
    found = misnaming.all(text)
    assert len(found) == sum(word in COLORS for word in words(text))
    for told in found:
        changed = [{a, b} for a, b in zip(words(text), words(told), strict=True) if a != b]
        assert len(changed) == 1
        assert changed[0] in [set(pair) for pair in OPPOSITES]
    assert misnaming.one(text, torch.Generator().manual_seed(seed)) in (found or [text])


def test_all_else_stays_as_it_is_written() -> None:
    misnaming = Misnaming([["Left", "right"]])
    assert misnaming.all("Open the Left drawer, please!") == ["Open the right drawer, please!"]
    assert misnaming.all("Wipe the table.") == []
    assert misnaming.all("the leftish one") == []


def test_successes_alone_are_told_by_another_name() -> None:
    texts = ["put the red cube on the green disk", "put the red cube on the green disk", "wipe the table"]
    names = Wordings(texts, ["success", "near_success", "success"], Misnaming(), 0.25)
    episode = torch.arange(3).repeat(400)
    wording = names.draw(episode, torch.Generator().manual_seed(0))
    assert not wording[episode != 0].any()  # what fails may be a success by another name
    drawn = wording[episode == 0]
    assert 60 < int((drawn > 0).sum()) < 140
    assert set(drawn.tolist()) == {0, 1, 2}
    told = names.told(torch.tensor([0, 0, 0, 2]), torch.tensor([0, 1, 2, 0]))
    assert told == [texts[0], "put the blue cube on the green disk", "put the red cube on the yellow disk", texts[2]]


def test_opposites_are_given_as_pairs(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    add_opposites(parser)
    assert Misnaming(parser.parse_args([]).opposites).all("the red cube") == ["the blue cube"]
    own = Misnaming(parser.parse_args(["--opposites", "left:right"]).opposites)
    assert own.all("the left red cube") == ["the right red cube"]
    for wrong in ("left", "left:", "a:b:c"):
        with pytest.raises(SystemExit):
            parser.parse_args(["--opposites", wrong])
        assert f"'{wrong}' is not a pair of words such as red:blue" in capsys.readouterr().err
