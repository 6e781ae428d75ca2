"""OpenVLA-OFT as a policy: chunks, sampling, learning signals, and one clear sentence for bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from wvl_ros.errors import CheckpointError, ConfigError, ObservationError, UnknownNameError
from wvl_ros.policies.interface import Policy
from wvl_ros.policies.openvla_oft.config import Settings
from wvl_ros.policies.openvla_oft.policy import OpenVLAPolicy
from wvl_ros.policies.registry import make_policy
from wvl_ros.worlds import droid

MakeFolder = Callable[..., Path]
MakeObservation = Callable[..., dict[str, np.ndarray]]
TEXTS = ["put red cube on disk", "push the blue cube"]


@pytest.mark.parametrize("options", [{}, {"l1": True, "proprio": True}])
def test_it_is_a_policy_and_gives_one_chunk_an_observation(
    make_folder: MakeFolder, make_observation: MakeObservation, options: dict[str, Any]
) -> None:
    policy = make_policy("openvla_oft", checkpoint=str(make_folder(**options)))
    assert isinstance(policy, Policy)
    observations = [make_observation(0), make_observation(1)]
    chunk = policy.act(observations, TEXTS)
    assert chunk.actions.shape == (2, 8, 7)
    assert chunk.actions.dtype == np.float64
    assert chunk.log_probs is None
    assert policy.execute_steps == 6
    for actions in chunk.actions:
        np.testing.assert_array_equal(droid.check_chunk(actions, policy.action_space), actions)
    assert set(chunk.actions[..., 6].flatten()) <= {0.0, 1.0}
    np.testing.assert_array_equal(policy.act(observations, TEXTS).actions, chunk.actions)
    assert np.abs(chunk.actions[0] - chunk.actions[1]).max() > 0.01


def test_the_most_likely_tokens_are_deployed(make_folder: MakeFolder, make_observation: MakeObservation) -> None:
    policy = OpenVLAPolicy.from_pretrained(make_folder())
    inputs = policy.inputs([make_observation()], TEXTS[:1])
    with torch.no_grad():
        best = policy.network.logits(policy.network(inputs)).argmax(-1).view(1, 8, 7)
    np.testing.assert_array_equal(policy.actions(best), policy.act([make_observation()], TEXTS[:1]).actions)
    policy.reset(0)
    assert torch.equal(policy.draw(inputs, temperature=1e-4).tokens, best)


def test_sampling_repeats_with_its_seed_and_reports_its_log_probabilities(
    make_folder: MakeFolder, make_observation: MakeObservation
) -> None:
    policy = OpenVLAPolicy.from_pretrained(make_folder(), sample=True)
    observations = [make_observation(0), make_observation(1)]
    policy.reset(5)
    first, second = policy.act(observations, TEXTS), policy.act(observations, TEXTS)
    policy.reset(5)
    np.testing.assert_array_equal(policy.act(observations, TEXTS).actions, first.actions)
    assert np.abs(first.actions - second.actions).max() > 0
    inputs = policy.inputs(observations, TEXTS)
    policy.reset(5)
    drawn = policy.draw(inputs)
    np.testing.assert_array_equal(policy.actions(drawn.tokens), first.actions)
    recomputed = policy.log_prob(inputs, drawn.tokens)
    torch.testing.assert_close(recomputed, drawn.log_probs)
    assert first.log_probs is not None
    assert first.log_probs.shape == (2, 8)
    np.testing.assert_allclose(first.log_probs, recomputed.sum(-1).detach(), rtol=1e-5)
    with torch.no_grad():
        scores = policy.network.logits(policy.network(inputs)).view(2, 8, 7, 256) / 1.6
    odds = scores.softmax(-1).gather(-1, drawn.tokens[..., None])[..., 0].log()
    torch.testing.assert_close(drawn.log_probs, odds)


def test_draws_follow_the_distribution(make_folder: MakeFolder, make_observation: MakeObservation) -> None:
    policy = OpenVLAPolicy.from_pretrained(make_folder())
    policy.reset(0)
    inputs = policy.inputs([make_observation()] * 40, TEXTS[:1] * 40)
    tokens = torch.cat([policy.draw(inputs).tokens for _ in range(8)]).float()
    with torch.no_grad():
        odds = (policy.network.logits(policy.network(policy.inputs([make_observation()], TEXTS[:1]))) / 1.6).softmax(-1)
    numbers = torch.arange(256.0)
    mean = (odds * numbers).sum(-1).view(8, 7)
    deviation = ((odds * numbers.square()).sum(-1).view(8, 7) - mean.square()).sqrt()
    assert float(((tokens.mean(0) - mean) / (deviation / len(tokens) ** 0.5)).abs().max()) < 4.5


def test_log_probabilities_teach(make_folder: MakeFolder, make_observation: MakeObservation) -> None:
    policy = OpenVLAPolicy.from_pretrained(make_folder())
    policy.reset(0)
    inputs = policy.inputs([make_observation()], TEXTS[:1])
    drawn = policy.draw(inputs)
    parameters = policy.add_lora(rank=4, alpha=4)
    optimizer = torch.optim.Adam(parameters, lr=3e-3)
    before = float(drawn.log_probs.sum())
    for _ in range(6):
        optimizer.zero_grad()
        (-policy.log_prob(inputs, drawn.tokens).sum()).backward()
        optimizer.step()
    assert float(policy.log_prob(inputs, drawn.tokens).detach().sum()) > before + 10
    reached = {
        name.split(".")[0] for name, p in policy.network.named_parameters() if p.grad is not None and p.grad.any()
    }
    assert reached == {"vision_backbone", "projector", "language_model"}


def test_a_demonstrations_tokens_mean_its_actions(make_folder: MakeFolder) -> None:
    policy = OpenVLAPolicy.from_pretrained(make_folder())
    actions = np.random.default_rng(0).uniform(-0.3, 0.3, (2, 8, 7))
    actions[..., 3:6] /= 2  # LIBERO's range of rotations
    actions[..., 6] = actions[..., 6] > 0
    tokens = policy.tokens(actions)
    assert tokens.shape == (2, 8, 7)
    np.testing.assert_allclose(policy.actions(tokens), actions, atol=0.004)


def test_an_l1_head_says_why_it_cannot_do_grpo(make_folder: MakeFolder, make_observation: MakeObservation) -> None:
    folder = make_folder(l1=True)
    policy = OpenVLAPolicy.from_pretrained(folder)
    inputs = policy.inputs([make_observation()], TEXTS[:1])
    for ask in (
        lambda: policy.draw(inputs),
        lambda: policy.log_prob(inputs, torch.zeros(1, 8, 7, dtype=torch.int64)),
        lambda: OpenVLAPolicy.from_pretrained(folder, sample=True),
    ):
        with pytest.raises(ConfigError, match="has an L1 head, which gives one action and no probability"):
            ask()


def test_bfloat16_is_close(make_folder: MakeFolder, make_observation: MakeObservation) -> None:
    folder = make_folder(l1=True, proprio=True)
    whole, half = (OpenVLAPolicy.from_pretrained(folder, dtype=dtype) for dtype in (None, torch.bfloat16))
    assert half.network.projector.fc1.weight.dtype == torch.bfloat16
    assert half.network.language_model.model.rotary_emb.inv_freq.dtype == torch.float32
    actions = [policy.act([make_observation()], TEXTS[:1]).actions[..., :6] for policy in (whole, half)]
    assert np.abs(actions[0] - actions[1]).mean() < 0.02


def test_the_image_processors_numbers_are_taken(make_folder: MakeFolder) -> None:
    folder = make_folder()
    table = {"means": [[0.485, 0.456, 0.406], [0.5] * 3], "stds": [[0.229, 0.224, 0.225], [0.5] * 3]}
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(table))
    vision = OpenVLAPolicy.from_pretrained(folder).network.vision_backbone
    torch.testing.assert_close(vision.means[:, :, 0, 0], torch.tensor(table["means"]))
    rounded = [{"mean": [0.484375, 0.455078125, 0.40625], "std": [0.25] * 3}, {"mean": [0.5] * 3, "std": [0.5] * 3}]
    path.write_text(json.dumps(table | {"tvf_normalize_params": rounded}))
    vision = OpenVLAPolicy.from_pretrained(folder).network.vision_backbone
    assert vision.means[0, :, 0, 0].tolist() == rounded[0]["mean"]
    assert vision.deviations[0, :, 0, 0].tolist() == rounded[0]["std"]
    path.write_text(json.dumps({"tvf_normalize_params": [1]}))
    with pytest.raises(CheckpointError, match="does not say how to normalise"):
        OpenVLAPolicy.from_pretrained(folder)


def test_bad_observations_are_named(make_folder: MakeFolder, make_observation: MakeObservation) -> None:
    policy = OpenVLAPolicy.from_pretrained(make_folder(proprio=True))
    good = make_observation()
    cases = [
        ({name: value for name, value in good.items() if "exterior_image_1" not in name}, "'exterior_image_1_left' is"),
        (good | {"exterior_image_1_left": good["exterior_image_1_left"][..., 0]}, "uint8 HxWx3"),
        ({name: value for name, value in good.items() if name != "gripper_position"}, "lacks 'gripper_position'"),
        (good | {"cartesian_position": np.full(6, np.nan)}, "should be 6 finite numbers"),
    ]
    for observation, words in cases:
        with pytest.raises(ObservationError, match=words):
            policy.act([observation], TEXTS[:1])
    with pytest.raises(ObservationError, match="1 observations, but 2 instructions"):
        policy.act([good], TEXTS)
    with pytest.raises(ObservationError, match="at most 64"):
        policy.act([good], ["put " * 60])


def test_bad_folders_are_named(make_folder: MakeFolder, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no OpenVLA-OFT checkpoint"):
        OpenVLAPolicy.from_pretrained(tmp_path / "nowhere")
    folder = make_folder()
    config = json.loads((folder / "config.json").read_text())
    for change, words in (
        ({"arch_specifier": "no-align+gelu-mlp"}, "another network: arch_specifier"),
        ({"timm_model_ids": ["vit_large_patch14_clip_224.openai"]}, "names the vision transformers"),
        ({"image_sizes": [30, 30]}, "image_sizes"),
        ({"text_config": config["text_config"] | {"rope_theta": 5e5}}, "another network: rope_theta"),
        ({"text_config": None}, "text_config is missing"),
        ({"text_config": config["text_config"] | {"hidden_size": 30}}, "no multiple of num_attention_heads"),
        ({"text_config": config["text_config"] | {"vocab_size": "many"}}, "the vocab_size 'many'"),
        ({"timm_model_ids": ["tiny_siglip", "tiny_dino"]}, "names the vision transformers"),
    ):
        (folder / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(CheckpointError, match=words):
            OpenVLAPolicy.from_pretrained(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="no table"):
        OpenVLAPolicy.from_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))
    for name, words in (("vision_backbone--5_checkpoint.pt", "FiLM"), ("noisy_action_projector--5_x.pt", "diffusion")):
        (folder / name).touch()
        with pytest.raises(CheckpointError, match=words):
            OpenVLAPolicy.from_pretrained(folder)
        (folder / name).unlink()
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer.json is damaged"):
        OpenVLAPolicy.from_pretrained(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="tokenizer is missing"):
        OpenVLAPolicy.from_pretrained(folder)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config.json is missing"):
        OpenVLAPolicy.from_pretrained(folder)


def test_what_the_published_files_do_not_say_must_be_said(make_folder: MakeFolder) -> None:
    folder = make_folder()
    path = folder / "wvl_policy.json"
    chosen = json.loads(path.read_text())
    for change, words in (
        ({"convention": "bridge"}, "no convention of OpenVLA's actions called 'bridge'; choose one of: droid, libero"),
        ({"cameras": ["top"]}, "no camera called 'top'"),
        ({"cameras": []}, "cameras are empty"),
        ({"execute_steps": 9}, "execute_steps must be in 1 .. chunk_size 8"),
        ({"colour": 1}, "unknown setting 'colour'"),
        ({"dataset": "bridge_orig"}, "no statistics of the data set 'bridge_orig'.*libero_10_no_noops"),
    ):
        path.write_text(json.dumps(chosen | change))
        with pytest.raises(CheckpointError, match=words):
            OpenVLAPolicy.from_pretrained(folder)
    path.write_text('{"convention": "libero"}')
    with pytest.raises(CheckpointError, match="does not describe a policy"):
        OpenVLAPolicy.from_pretrained(folder)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"does not say what its actions mean; put a wvl_policy.json there"):
        OpenVLAPolicy.from_pretrained(folder)
    settings = Settings("droid", ("wrist_image_left",), chunk_size=4, execute_steps=3)
    policy = OpenVLAPolicy.from_pretrained(folder, settings=settings)
    assert policy.act([{"wrist_image_left": np.zeros((28, 28, 3), np.uint8)}], ["go"]).actions.shape == (1, 4, 7)
    with pytest.raises(UnknownNameError):
        Settings("bridge", ("wrist_image_left",))


def test_a_policy_without_weights_says_what_it_needs() -> None:
    with pytest.raises(CheckpointError, match="The policy 'openvla_oft' needs a folder of weights"):
        make_policy("openvla_oft")


def test_a_temperature_must_be_positive(make_folder: MakeFolder) -> None:
    with pytest.raises(ConfigError, match="temperature must be positive"):
        OpenVLAPolicy.from_pretrained(make_folder(), temperature=0.0)
