"""The small VLA: chunks, sampling, checkpoints, and one clear sentence for bad input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from wvl_ros.errors import CheckpointError, ConfigError, ObservationError, UnknownNameError
from wvl_ros.policies.interface import Policy
from wvl_ros.policies.network import PolicyConfig, behaviour_loss
from wvl_ros.policies.small import SmallPolicy
from wvl_ros.policies.tokenizer import WordTokenizer
from wvl_ros.worlds import droid

TEXTS = [
    "put the red cube on the yellow disk",
    "put the blue cube on the yellow disk",
    "push the yellow block to the red disk",
]
CONFIG = PolicyConfig(channels=8, keypoints=8, hidden=32, vocabulary=WordTokenizer.from_texts(TEXTS).vocabulary)


def make_policy(**options: object) -> SmallPolicy:
    torch.manual_seed(0)
    return SmallPolicy(CONFIG, **options)  # type: ignore[arg-type]


def make_observation(seed: int = 0, height: int = 128, width: int = 128) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    images = {camera: rng.integers(0, 255, (height, width, 3), dtype=np.uint8) for camera in droid.CAMERAS}
    joints = droid.RESET_JOINTS + rng.uniform(-0.1, 0.1, 7)
    return images | {
        "joint_position": joints,
        "cartesian_position": droid.forward_kinematics(joints),
        "gripper_position": np.array([0.2]),
    }


def test_it_is_a_policy_and_gives_one_chunk_an_observation() -> None:
    policy = make_policy()
    assert isinstance(policy, Policy)
    chunk = policy.act([make_observation(0), make_observation(1)], TEXTS[:2])
    assert chunk.actions.shape == (2, policy.chunk_size, 7)
    assert chunk.actions.dtype == np.float64
    assert chunk.log_probs is None
    for actions in chunk.actions:
        np.testing.assert_array_equal(droid.check_chunk(actions, policy.action_space), actions)


def test_a_batch_acts_like_its_rows() -> None:
    policy = make_policy()
    observations = [make_observation(i) for i in range(3)]
    together = policy.act(observations, TEXTS).actions
    alone = [policy.act([o], [t]).actions[0] for o, t in zip(observations, TEXTS, strict=True)]
    np.testing.assert_allclose(together, np.stack(alone), atol=1e-5)


def test_word_order_and_state_and_image_matter() -> None:
    policy = make_policy()
    observation = make_observation()
    base = policy.act([observation], ["push the red block to the yellow disk"]).actions
    swapped = policy.act([observation], ["push the yellow block to the red disk"]).actions
    raised = observation | {"cartesian_position": observation["cartesian_position"] + [0, 0, 0.1, 0, 0, 0]}
    assert np.abs(base - swapped).max() > 1e-5
    assert np.abs(base - policy.act([raised], ["push the red block to the yellow disk"]).actions).max() > 1e-5
    darker = observation | {"wrist_image_left": observation["wrist_image_left"] // 2}
    assert np.abs(base - policy.act([darker], ["push the red block to the yellow disk"]).actions).max() > 1e-5


@pytest.mark.parametrize(("height", "width"), [(64, 64), (180, 320), (480, 640)])
def test_any_image_of_at_least_64_pixels_is_fine(height: int, width: int) -> None:
    assert make_policy().act([make_observation(0, height, width)], TEXTS[:1]).actions.shape == (1, 9, 7)


def test_sampling_repeats_with_its_seed_and_reports_its_log_probabilities() -> None:
    policy = make_policy(sample=True)
    observation = make_observation()
    policy.reset(5)
    first = policy.act([observation], TEXTS[:1])
    second = policy.act([observation], TEXTS[:1])
    policy.reset(5)
    again = policy.act([observation], TEXTS[:1])
    np.testing.assert_array_equal(first.actions, again.actions)
    assert np.abs(first.actions - second.actions).max() > 0
    assert first.log_probs is not None
    assert first.log_probs.shape == (1, 9)
    outputs = policy.network(policy.inputs([observation], TEXTS[:1]))
    recomputed = policy.log_prob(outputs, torch.from_numpy(first.actions).float()).detach().numpy()
    np.testing.assert_allclose(first.log_probs, recomputed, rtol=1e-4, atol=1e-3)


def test_a_cool_sample_is_close_to_the_mean() -> None:
    observation = make_observation()
    mean = make_policy().act([observation], TEXTS[:1]).actions[..., :6]
    cool = make_policy(sample=True, temperature=0.01)
    cool.reset(0)
    assert np.abs(cool.act([observation], TEXTS[:1]).actions[..., :6] - mean).max() < 0.01


def test_a_checkpoint_brings_the_same_policy_back(tmp_path: Path) -> None:
    policy = make_policy()
    policy.save_pretrained(tmp_path)
    back = SmallPolicy.from_pretrained(tmp_path)
    assert back.config == policy.config
    observation = make_observation()
    want = policy.act([observation], TEXTS[:1]).actions
    np.testing.assert_array_equal(back.act([observation], TEXTS[:1]).actions, want)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_bad_checkpoints_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no policy checkpoint"):
        SmallPolicy.from_pretrained(tmp_path / "nowhere")
    make_policy().save_pretrained(tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    values = json.loads(config.read_text())
    config.write_text(json.dumps(values | {"hidden": 64}))
    with pytest.raises(CheckpointError, match="do not fit"):
        SmallPolicy.from_pretrained(tmp_path)
    config.write_text(json.dumps(values | {"depth": 3}))
    with pytest.raises(CheckpointError, match="unknown setting 'depth'"):
        SmallPolicy.from_pretrained(tmp_path)
    config.write_text(json.dumps(values | {"_class_name": "UNet2DModel"}))
    with pytest.raises(CheckpointError, match="a checkpoint of 'UNet2DModel'"):
        SmallPolicy.from_pretrained(tmp_path)
    config.write_text("{")
    with pytest.raises(CheckpointError, match="not valid JSON"):
        SmallPolicy.from_pretrained(tmp_path)
    config.write_text(json.dumps(values))
    weights.write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="cannot be read"):
        SmallPolicy.from_pretrained(tmp_path)
    weights.unlink()
    with pytest.raises(CheckpointError, match="missing"):
        SmallPolicy.from_pretrained(tmp_path)


def test_bad_observations_are_named() -> None:
    policy = make_policy()
    good = make_observation()
    without = {name: value for name, value in good.items() if name != "wrist_image_left"}
    cases = [
        (without, "camera 'wrist_image_left' is missing"),
        (good | {"wrist_image_left": good["wrist_image_left"].astype(np.float32)}, "uint8 HxWx3"),
        (good | {"wrist_image_left": good["wrist_image_left"][..., 0]}, "uint8 HxWx3"),
        (good | {"wrist_image_left": good["wrist_image_left"][:32, :32]}, "at least 64x64"),
        (good | {"cartesian_position": np.zeros(7)}, "'cartesian_position' should be 6 finite numbers"),
        (good | {"gripper_position": np.array([np.nan])}, "'gripper_position' should be 1 finite numbers"),
        ({name: value for name, value in good.items() if name != "gripper_position"}, "lacks 'gripper_position'"),
    ]
    for observation, sentence in cases:
        with pytest.raises(ObservationError, match=sentence):
            policy.act([observation], TEXTS[:1])
    with pytest.raises(ObservationError, match="2 observations"):
        policy.act([good, good], TEXTS[:1])


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ({"execute_steps": 4}, "multiple of 3"),
        ({"execute_steps": 12}, "multiple of 3"),
        ({"hidden": 0}, "hidden must be positive"),
        ({"cameras": ()}, "cameras are empty"),
        ({"patch": 5}, "multiple of its patch"),
        ({"patch": 5, "image_size": 65, "place_channels": 8}, "multiple of 2 where places"),
        ({"place_channels": -1}, "place_channels must be positive"),
        ({"place_channels": 8, "cameras": ("wrist_image_left",)}, "add exterior_image_1_left"),
    ],
)
def test_impossible_settings_are_refused(setting: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        PolicyConfig(**setting)  # type: ignore[arg-type]


def test_an_unknown_camera_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="no camera called 'top'"):
        PolicyConfig(cameras=("top",))


def test_unknown_targets_do_not_count_in_the_loss() -> None:
    policy = make_policy()
    outputs = policy.network(policy.inputs([make_observation()], TEXTS[:1]))
    actions, places = torch.full((1, 9, 7), 0.5), torch.full((1, 6), 0.3)
    whole = behaviour_loss(outputs, actions, places)
    actions[:, 4:] = torch.nan
    places[:, 3:] = torch.nan
    part = behaviour_loss(outputs, actions, places)
    assert bool(part["loss"].isfinite())
    assert part["velocity"] != whole["velocity"]
    nothing = behaviour_loss(outputs, actions * torch.nan, places * torch.nan)
    assert nothing["loss"].item() == 0.0
