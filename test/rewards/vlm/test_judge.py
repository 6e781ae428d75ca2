"""The vision-language judge: P(yes) is what a plain loop computes, a batch changes nothing, silence is no yes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from wvl_ros.cli import main
from wvl_ros.errors import CheckpointError
from wvl_ros.rewards.vlm.answer import YesNo
from wvl_ros.rewards.vlm.clip import cut
from wvl_ros.rewards.vlm.judge import VlmJudge
from wvl_ros.rewards.vlm.model import FAMILIES
from wvl_ros.sans.episode import Episode
from wvl_ros.worlds.droid import CAMERAS

SMALL: dict[str, Any] = {"frames": 4, "min_pixels": 56 * 56, "max_pixels": 64 * 64, "least_mass": 0.0}


def plain_loop(judge: VlmJudge, episode: Episode) -> tuple[float, float]:
    """P(yes) and the mass of yes and no of one episode: no padding, no mask, softmax over all tokens, sums."""
    qwen, settings = judge.qwen, judge.settings
    clip = cut(episode, settings.cameras, settings.frames)
    pixels, grid = qwen.patching.cut(clip.frames, settings.min_pixels, settings.max_pixels)
    text = qwen.text(clip, settings.asked(episode.instruction), grid)
    ids = torch.tensor([qwen.tokenizer.encode(text, add_special_tokens=False)])
    more = {} if qwen.family.timed else {"second_per_grid_ts": [2 * clip.interval]}
    kinds = torch.zeros_like(ids)
    for i, token in enumerate(ids[0].tolist()):
        if token == qwen.model.config.video_token_id:
            kinds[0, i] = 2
    with torch.no_grad():
        out = qwen.model(
            input_ids=ids,
            pixel_values_videos=pixels,
            video_grid_thw=torch.tensor([grid]),
            mm_token_type_ids=kinds,
            **more,
        )
    chances = torch.softmax(out.logits[0, -1].double(), -1)
    sums = {"yes": 0.0, "no": 0.0}
    for token, text in enumerate(qwen.tokenizer.batch_decode([[i] for i in range(len(chances))])):
        if text.strip().lower() in sums and text in (
            "yes",
            "Yes",
            "YES",
            " yes",
            " Yes",
            "no",
            "No",
            "NO",
            " no",
            " No",
        ):
            sums[text.strip().lower()] += float(chances[token])
    return sums["yes"] / (sums["yes"] + sums["no"]), sums["yes"] + sums["no"]


@pytest.mark.parametrize("family", list(FAMILIES))
def test_the_probability_is_that_of_a_plain_loop_and_a_batch_changes_nothing(
    make_vlm: Callable[..., Path], make_episode: Callable[..., Episode], family: str
) -> None:
    judge = VlmJudge.from_pretrained(make_vlm(family, spread=0.3), batch=3, **SMALL)
    assert len(judge.words.yes) > 1  # several spellings
    lengths, words = (13, 1, 40, 7, 22), ("push", "put the red cube on the green disk", "a b c", "", "stack")
    episodes = [
        make_episode(steps=n, seed=i, instruction=text) for i, (n, text) in enumerate(zip(lengths, words, strict=True))
    ]
    answers = judge.answers(episodes)
    expected = np.array([plain_loop(judge, episode) for episode in episodes])
    assert np.ptp(expected[:, 0]) > 0.01  # or all would be equal anyway
    np.testing.assert_allclose(answers.yes, expected[:, 0], atol=1e-6)
    np.testing.assert_allclose(answers.mass, expected[:, 1], atol=1e-6)
    alone = [judge.probability([episode])[0] for episode in episodes]
    np.testing.assert_allclose(judge.probability(episodes), alone, atol=1e-6)
    assert judge.report() == {"asked": 10, "abstained": 0, "mean_mass": pytest.approx(expected[:, 1].mean(), abs=1e-3)}


def test_pictures_instruction_and_cameras_matter(
    make_vlm: Callable[..., Path], make_episode: Callable[..., Episode]
) -> None:
    folder = make_vlm()
    judge = VlmJudge.from_pretrained(folder, **SMALL)
    episode = make_episode()
    dark = replace(episode, images={name: stack // 8 for name, stack in episode.images.items()})
    other = replace(episode, instruction="sweep")
    tiled = VlmJudge.from_pretrained(folder, cameras=CAMERAS, **SMALL)
    wrist = VlmJudge.from_pretrained(folder, cameras=[CAMERAS[2]], **SMALL)
    found = [*judge.probability([episode, dark, other]), *tiled.probability([episode]), *wrist.probability([episode])]
    assert len({round(float(chance), 7) for chance in found}) == 5


def test_it_abstains_where_the_model_does_not_answer(
    make_vlm: Callable[..., Path], make_episode: Callable[..., Episode], caplog: pytest.LogCaptureFixture
) -> None:
    judge = VlmJudge.from_pretrained(make_vlm(), **(SMALL | {"least_mass": 0.1}))
    episodes = [make_episode(seed=i) for i in range(3)]
    with caplog.at_level(logging.WARNING):
        assert judge.probability(episodes).tolist() == [0.0, 0.0, 0.0]  # random weights: each of 319 tokens alike
    assert "abstains from 3 of 3 episodes" in caplog.text
    assert judge.abstained == 3
    assert judge.answers(episodes).yes.min() > 0.2
    with torch.no_grad():
        head = judge.qwen.model.lm_head
        head.weight[list(judge.words.yes)] = 0  # logits 0 for yes, far less for the rest
        for token in set(range(head.out_features)) - set(judge.words.yes):
            head.weight[token] = 0
        logits = torch.full((head.out_features,), -50.0)
        logits[list(judge.words.yes)] = 0.0
        logits[list(judge.words.no)] = -1.0
        head.bias = torch.nn.Parameter(logits)
    yes, no = len(judge.words.yes), len(judge.words.no)
    assert judge.probability(episodes) == pytest.approx([yes / (yes + no / np.e)] * 3)
    assert judge.abstained == 3


def test_settings_lie_beside_the_weights(make_vlm: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_vlm()
    judge = VlmJudge.from_pretrained(folder, 0.4, cameras=CAMERAS[:2])
    judge.save(tmp_path / "kept")
    assert VlmJudge.from_pretrained(tmp_path / "kept").settings == judge.settings
    assert VlmJudge.from_pretrained(tmp_path / "kept", 0.9).threshold == 0.9
    assert VlmJudge.from_pretrained(folder).threshold == 0.8
    assert not list((tmp_path / "kept").glob(".*"))


def test_a_tokenizer_without_yes_is_refused() -> None:
    tokenizer = SimpleNamespace(encode=lambda text, **_: [7] if text.strip().lower() == "no" else [1, 2])
    with pytest.raises(CheckpointError, match="no token for 'yes'"):
        YesNo.of(tokenizer)


def test_label_takes_its_word_where_it_answers(
    make_vlm: Callable[..., Path],
    make_episode: Callable[..., Episode],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from wvl_ros.sans.dataset import Dataset
    from wvl_ros.sans.store.format import DatasetFormat

    data = Dataset.create(tmp_path / "sans", DatasetFormat(dict.fromkeys(CAMERAS, (64, 64))))
    for seed in range(2):
        data.append(make_episode(seed=seed, outcome=""))
    silent, bold = make_vlm(name="silent"), make_vlm(name="bold")
    VlmJudge.from_pretrained(bold, 0.1, least_mass=0.0).settings.write(bold)
    assert main(["label", str(data.root), "--by", "vlm"]) == 2
    assert "--by vlm needs --checkpoint" in capsys.readouterr().err
    assert main(["label", str(data.root), "--by", "vlm", "--checkpoint", str(silent)]) == 0
    assert "0 of 2 episodes labelled: none." in capsys.readouterr().out
    assert main(["label", str(data.root), "--by", "vlm", "--checkpoint", str(bold)]) == 0
    data.refresh()
    assert [(r.outcome, r.outcome_source) for r in data.records] == [("success", "reward_model")] * 2
