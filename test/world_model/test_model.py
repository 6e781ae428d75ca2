"""The world model as a file: what is saved comes back, and what does not fit is refused in a sentence."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from wvl_ros.checkpoints import find
from wvl_ros.errors import CheckpointError, ConfigError
from wvl_ros.world_model import composition
from wvl_ros.world_model.grip import likeliest
from wvl_ros.world_model.instruction import InstructionEncoder, collect_vocabulary
from wvl_ros.world_model.kinematics import GRIPPER, TCP_OFFSET, Kinematics
from wvl_ros.world_model.loading import WEIGHTS_NAME, load_world_model, save_world_model
from wvl_ros.world_model.model import WorldModel
from wvl_ros.world_model.things import MOST, Things

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


def _closing(model: WorldModel, calibrated: float) -> tuple[Any, ...]:
    """`_inputs` of hands over the table that are told to close."""
    noisy, sigma, last, previous, packed, actions, context = _inputs(model, calibrated)
    actions = torch.cat([actions[..., :6], torch.ones(2, 3, 1)], 2)
    return noisy, sigma, last, previous, packed, actions, context


def test_the_gripper_is_where_it_is_foreseen_or_known_to_be() -> None:
    model = load_world_model(find("world_model", "small"))
    inputs = _closing(model, 1.0)
    with torch.no_grad():
        told, known = model(*inputs), model(*inputs, next_gripper=torch.tensor([[0.25], [0.75]]))
    assert known.kinematics[:, GRIPPER].tolist() == [0.25, 0.75]
    assert not torch.equal(told.frame, known.frame)  # the pictures follow from it
    assert not torch.equal(told.reward, known.reward)


def test_where_nothing_was_found_the_wrists_view_tells_where_the_gripper_stops() -> None:
    model = load_world_model(find("world_model", "small"))
    inputs = _closing(model, 0.0)
    assert not Things.unpack(inputs[-1].things).there.any()
    with torch.no_grad():
        told = model(*inputs).kinematics[:, GRIPPER]
        now, then = Kinematics.unpack(inputs[4]), model.move(inputs[4], inputs[5], inputs[-1].calibrated)[0]
        views = composition.views(inputs[2])
        expected = likeliest(model.grip(views[:, 2], now, then, inputs[5][:, :, 6]))
    assert torch.allclose(told, expected[:, 0], atol=1e-5)


def test_things_that_are_pushed_move_in_the_next_frame_and_are_drawn_there() -> None:
    model = load_world_model(find("world_model", "small"))
    noisy, sigma, last, previous, _, _, context = _inputs(model)
    pose = torch.tensor([[0.5, 0.0, 0.02 + TCP_OFFSET, math.pi, 0.0, 0.0]]).repeat(2, 1)
    command = torch.cat([pose, torch.ones(2, 1)], 1)
    k = Kinematics.at_rest(pose, torch.ones(2, 1), command).pack()
    actions = command[:, None].repeat(1, 3, 1)
    actions[:, :, 0] += torch.tensor([0.015, 0.03, 0.045])
    place, there = torch.zeros(2, MOST, 3), torch.zeros(2, MOST)
    place[:, 0], there[0, 0] = torch.tensor([0.56, 0.0, 0.025]), 1  # in the second rollout there is none
    things = Things.at_rest(place, torch.zeros(2, MOST), torch.full((2, MOST), 0.03), there).pack()
    with torch.no_grad():
        out = model(noisy, sigma, last, previous, k, actions, context._replace(things=things))
    after = Things.unpack(out.things)
    assert float(after.place[0, 0, 0]) > 0.565
    assert torch.equal(after.place[1], place[1])
    assert not torch.allclose(out.frame[0], out.frame[1], atol=0.05)


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
