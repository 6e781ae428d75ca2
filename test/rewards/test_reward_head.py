"""The reward head as a judge: the model's own rule, on what it imagined and on recorded episodes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wvl_ros.errors import CheckpointError, EpisodeError
from wvl_ros.rewards.reward_head import RewardHead
from wvl_ros.sans.episode import Episode
from wvl_ros.sans.labels import RewardModel

MODEL = """{"success_threshold": 0.65, "success_frames": %d, "actions_per_frame": 3, "_class_name": "WorldModel"}"""
N = 13
IMAGINED = Episode(
    images={},
    joint_position=np.zeros((N, 7)),
    cartesian_position=np.zeros((N, 6)),
    gripper_position=np.zeros((N, 1)),
    action=np.zeros((N - 1, 7)),
    reward=np.zeros(N - 1, np.float32),
    task="push",
    instruction="push it",
    source="policy/imagined",
    episode_id="dream",
)


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> dict[int, RewardHead]:
    """By frames in a row; of these models only the settings are there."""
    found = {}
    for frames in (1, 2, 3):
        folder = tmp_path_factory.mktemp("model")
        (folder / "config.json").write_text(MODEL % frames)
        (folder / "diffusion_pytorch_model.safetensors").touch()
        found[frames] = RewardHead(str(folder))
    return found


@given(st.sampled_from((1, 2, 3)), st.lists(st.sampled_from((0.0, 0.3, 0.6, 0.65, 0.7, 0.9, 1.0)), max_size=12))
def test_an_imagined_episode_succeeds_exactly_when_a_run_of_frames_holds_the_threshold(
    heads: dict[int, RewardHead], frames: int, chances: list[float]
) -> None:
    episode = replace(IMAGINED, extra={"success_probability": chances})
    found = float(heads[frames].probability([episode])[0])
    runs = [chances[i : i + frames] for i in range(len(chances) - frames + 1)]
    assert found == max((min(run) for run in runs), default=0.0)
    held = succeeded = 0  # as a rollout counts
    for chance in chances:
        held = held + 1 if chance > 0.65 else 0
        succeeded |= held >= frames
    assert (found > heads[frames].threshold) == bool(succeeded)


def test_a_bag_keeps_a_probability_a_step_of_which_a_frame_is_every_third(heads: dict[int, RewardHead]) -> None:
    steps = [0.0] * 3 + [0.9] * 3 + [0.2] * 3 + [0.8] * 4  # of 13 observations: frames 0.9, 0.2, 0.8, 0.8
    per_step = replace(IMAGINED, extra={"success_probability": [0.0, 0.0, 0.0, *steps[3:]]})
    assert heads[2].frame_probabilities(per_step).tolist() == [0.9, 0.2, 0.8, 0.8]
    brief = [0.0] * 3 + [0.9] * 3 + [0.2] * 7  # three steps, but one frame only
    assert heads[2].probability([replace(IMAGINED, extra={"success_probability": brief})])[0] == 0.2


@pytest.mark.parametrize("kept", [[0.2, float("nan")], [1.2], "0.5", [[0.5]], None])
def test_damaged_probabilities_are_one_sentence(heads: dict[int, RewardHead], kept: object) -> None:
    with pytest.raises(EpisodeError, match=r"^Episode 'dream' is damaged: its 'success_probability' should be .*\.$"):
        heads[1].probability([replace(IMAGINED, extra={"success_probability": kept})])


def test_recorded_episodes_are_shown_to_the_model(make_episode: Callable[..., Episode]) -> None:
    head, model = RewardHead("small"), RewardModel()
    assert head.threshold == model.model.config["success_threshold"]
    recorded = make_episode(steps=22, seed=3)
    recorded.extra["success_probability"] = [1.0] * 7  # not the head's: of no world model
    imagined = replace(recorded, source="policy/imagined")
    without = replace(recorded, source="policy/imagined", extra={})
    verdict = model.judge(recorded)
    chances = verdict.probabilities
    frames = int(model.model.config["success_frames"])
    expected = max(chances[i : i + frames].min() for i in range(len(chances) - frames + 1))
    assert head.probability([recorded, imagined, without]).tolist() == [expected, 1.0, expected]
    assert (expected > head.threshold) == (verdict.outcome == "success")


def test_a_folder_without_a_reward_head_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(CheckpointError, match="no world model with a reward head"):
        RewardHead(str(tmp_path))
    with pytest.raises(CheckpointError, match="no world model checkpoint"):
        RewardHead(str(tmp_path / "none"))
