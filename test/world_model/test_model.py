"""The world model as a file: what is saved comes back, and what does not fit is refused in a sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from wvl_ros.checkpoints import find
from wvl_ros.errors import CheckpointError, ConfigError
from wvl_ros.world_model import composition
from wvl_ros.world_model.contact import likeliest
from wvl_ros.world_model.instruction import InstructionEncoder, collect_vocabulary
from wvl_ros.world_model.kinematics import GRIPPER, Kinematics
from wvl_ros.world_model.loading import WEIGHTS_NAME, load_world_model, save_world_model
from wvl_ros.world_model.model import WorldModel

SMALL = {"channels": 16, "condition_dim": 32, "vocabulary": ["cube", "red"]}


def _inputs(model: WorldModel, calibrated: float = 1.0, batch: int = 2) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(0)
    frames = [torch.rand(batch, 144, 16, 16, generator=generator) * 2 - 1 for _ in range(3)]
    pose = torch.tensor([[0.5, 0.0, 0.4, 3.1, 0.0, 0.0]]).repeat(batch, 1)
    command = torch.cat([pose, torch.zeros(batch, 1)], 1)
    k = Kinematics.at_rest(pose, torch.zeros(batch, 1), command).pack()
    words = model.instruction.tokens(["red cube"] * batch)
    actions = command[:, None].repeat(1, 3, 1)
    context = model.context(frames[2], k, words, torch.full((batch,), calibrated))
    return (frames[0], torch.ones(batch), frames[1], frames[1], k, actions, context)


def test_a_fresh_model_mostly_copies_the_last_frame() -> None:
    model = WorldModel(**SMALL).eval()
    inputs = _inputs(model)
    with torch.no_grad():
        out = model(*inputs)
    last, first = inputs[2], composition.frame(inputs[-1].first.views)
    assert (out.frame - last).abs().mean() < (out.frame - first).abs().mean()
    assert out.reward.shape == (2,)
    assert out.kinematics.shape == (2, 39)


def test_the_gripper_is_where_the_grip_says_or_where_it_is_known_to_be() -> None:
    model = load_world_model(find("world_model", "small"))
    inputs = _inputs(model)
    with torch.no_grad():
        told, known = model(*inputs), model(*inputs, gripper=torch.tensor([[0.25], [0.75]]))
    assert torch.equal(told.kinematics[:, GRIPPER, None], likeliest(told.grip))
    assert known.kinematics[:, GRIPPER].tolist() == [0.25, 0.75]
    assert torch.equal(told.grip, known.grip)
    assert not torch.equal(told.frame, known.frame)  # the pictures follow from it
    assert not torch.equal(told.reward, known.reward)


def test_the_instruction_decides_what_counts_as_a_success_not_what_happens() -> None:
    model = load_world_model(find("world_model", "small"))
    *given, context = _inputs(model)
    words = model.instruction.tokens(["put the red cube on the blue disk", "put the blue cube on the blue disk"])
    first = composition.frame(context.first.views)
    told = model.context(first[:1].expand(2, -1, -1, -1), context.kinematics, words, context.calibrated)
    alike = [part[:1].expand(2, *part.shape[1:]) for part in given]
    with torch.no_grad():
        out = model(*alike, told)
    assert torch.allclose(out.frame[0], out.frame[1], atol=1e-5)
    assert torch.allclose(out.kinematics[0], out.kinematics[1])
    assert abs(float(out.reward[0] - out.reward[1])) > 1e-3


def test_saved_weights_give_the_same_frames(tmp_path: Path) -> None:
    model = WorldModel(**SMALL).eval()
    save_world_model(model, tmp_path, torch.float32)
    with torch.no_grad():
        expected = model(*_inputs(model)).frame
        assert torch.equal(load_world_model(tmp_path)(*_inputs(model)).frame, expected)
        again = WorldModel.from_pretrained(tmp_path, use_safetensors=True).eval()
        assert torch.allclose(again(*_inputs(model)).frame, expected, atol=1e-5)


def test_half_precision_weights_are_half_as_large(tmp_path: Path) -> None:
    model = WorldModel(**SMALL)
    save_world_model(model, tmp_path / "whole", torch.float32)
    save_world_model(model, tmp_path / "half")
    sizes = [(tmp_path / name / WEIGHTS_NAME).stat().st_size for name in ("whole", "half")]
    assert sizes[1] < 0.6 * sizes[0]
    assert next(load_world_model(tmp_path / "half").parameters()).dtype == torch.float32


def test_uncalibrated_images_are_not_touched_by_geometry() -> None:
    camera = {"position": [0.8, 0.7, 0.6], "rotation": torch.eye(3).tolist(), "fovy_deg": 30.0, "parent": "base"}
    wrist = camera | {"parent": "flange"}
    torch.manual_seed(0)
    known = WorldModel(**SMALL, cameras=[camera, camera, wrist]).eval()
    unknown = WorldModel(**SMALL).eval()
    unknown.load_state_dict(known.state_dict())
    with torch.no_grad():
        assert torch.equal(known(*_inputs(known, 0.0)).frame, unknown(*_inputs(known, 0.0)).frame)
        assert not torch.equal(known(*_inputs(known)).frame, unknown(*_inputs(unknown)).frame)


def test_unknown_words_are_told_from_none() -> None:
    encoder = InstructionEncoder(collect_vocabulary(["Put the RED cube", "on the disk!"]))
    tokens = encoder.tokens(["red cube", "red teapot", ""])
    assert tokens[0, 0] == tokens[1, 0]
    assert tokens[1, 1] == 1
    assert not tokens[2].any()
    assert torch.isfinite(encoder(tokens)).all()


def test_a_checkpoint_of_another_architecture_is_named(tmp_path: Path) -> None:
    save_world_model(WorldModel(**SMALL), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"channels": 32}))
    with pytest.raises(CheckpointError, match="another architecture"):
        load_world_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"_class_name": "SmallPolicy"}))
    with pytest.raises(CheckpointError, match="SmallPolicy, not a WorldModel"):
        load_world_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"colour": "red"}))
    with pytest.raises(CheckpointError, match="does not describe"):
        load_world_model(tmp_path)


def test_missing_and_damaged_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no world model checkpoint"):
        find("world_model", tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        find("world_model", tmp_path)
    save_world_model(WorldModel(**SMALL), tmp_path)
    assert find("world_model", tmp_path) == tmp_path
    whole = (tmp_path / WEIGHTS_NAME).read_bytes()
    (tmp_path / WEIGHTS_NAME).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="damaged"):
        load_world_model(tmp_path)
    save_file({"something": torch.zeros(3)}, tmp_path / WEIGHTS_NAME)
    with pytest.raises(CheckpointError, match="not those that were saved"):
        load_world_model(tmp_path)
    (tmp_path / "checksums.json").unlink()  # weights from elsewhere have none
    with pytest.raises(CheckpointError, match="another architecture"):
        load_world_model(tmp_path)
    (tmp_path / WEIGHTS_NAME).unlink()
    with pytest.raises(CheckpointError, match=r"weights .* missing"):
        find("world_model", tmp_path)


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="multiple"):
        WorldModel(image_size=60)
    with pytest.raises(ConfigError, match="calibrations"):
        WorldModel(cameras=[None])
