"""How things move is learned from episodes that say where they were, and reported on episodes that were not seen."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from wvl_ros.training import physics_fit, things
from wvl_ros.training.frame_cache import FrameCache
from wvl_ros.training.physics_fit import fit_physics
from wvl_ros.training.world_model_settings import rig_facts
from wvl_ros.world_model.kinematics import TCP_OFFSET, Kinematics
from wvl_ros.world_model.model import WorldModel
from wvl_ros.world_model.things import Things

STEPS, EPISODES = 24, 20


def _pushes(known: bool = True) -> FrameCache:
    """A closed hand drives along x at a step of 8 mm and takes a block along as soon as it is 4 cm before it."""
    rng = np.random.default_rng(0)
    kinematics, actions, poses = [], [], []
    for _ in range(EPISODES):
        x, y, block = 0.45 + 0.05 * rng.random(), 0.1 * rng.random(), 0.55 + 0.03 * rng.random()
        hand = x + 0.008 * torch.arange(STEPS)
        flange = torch.tensor([[0.0, y, 0.02 + TCP_OFFSET, np.pi, 0.0, np.pi / 4]]).repeat(STEPS, 1)
        flange[:, 0] = hand
        commands = torch.cat([flange, torch.ones(STEPS, 1)], 1)
        kinematics.append(Kinematics.recorded(flange, torch.ones(STEPS, 1), commands).pack())
        actions.append(torch.cat([commands[1:], commands[-1:]]))
        place = torch.maximum(hand + 0.04, torch.tensor(block))
        rows = torch.tensor([0.0, y, 0.025, 0.0, 0.03]).repeat(STEPS, 1, 1)
        rows[:, 0, 0] = place
        poses.append(torch.from_numpy(things.pack(rows.double().numpy() if known else None, STEPS)))
    start = torch.arange(EPISODES) * STEPS
    return FrameCache(
        frames=np.zeros((EPISODES, 1, 1, 1), np.uint8),
        kinematics=torch.cat(kinematics).float(),
        actions=torch.cat(actions).float(),
        rewards=torch.zeros(EPISODES * STEPS),
        things=torch.cat(poses),
        frame_start=torch.arange(EPISODES),
        frame_count=torch.ones(EPISODES, dtype=torch.long),
        step_start=start,
        step_count=torch.full((EPISODES,), STEPS),
        instructions=["push"] * EPISODES,
        outcomes=["success"] * EPISODES,
        tasks=["push"] * EPISODES,
        sources=["expert"] * EPISODES,
        calibrated=torch.ones(EPISODES),
        actions_per_frame=3,
        fingerprint="",
    )


def _model() -> WorldModel:
    torch.manual_seed(0)
    return WorldModel(**rig_facts("tabletop"), channels=8, condition_dim=16)


def test_it_learns_a_push_over_one_step_and_over_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(physics_fit, "_UPDATES", 400)
    monkeypatch.setattr(physics_fit, "_BATCH", 64)
    found = fit_physics(_model(), _pushes(), torch.Generator().manual_seed(0))
    assert found["physics_1_mm"] < 1.5  # of 8
    assert found["physics_8_mm"] < 10.0  # of up to 64


def test_a_step_is_learned_from_where_own_steps_have_led() -> None:
    model, cache = _model(), _pushes()
    rows = torch.stack([torch.arange(3), cache.step_start[:3] + 8], 1)
    things, arm = physics_fit._play(model, cache, rows, torch.tensor([0, 2, 5]))
    true = Things.unpack(cache.things_at(*rows.unbind(1)))
    assert torch.equal(things.place[0], true.place[0])
    for i, steps in ((1, 2), (2, 5)):
        step, known = int(rows[i, 1]), torch.ones(1)
        actions = cache.actions[step : step + steps][None]
        k, _, packed = model.play(
            cache.kinematics[step : step + 1], cache.things_at(rows[i : i + 1, 0], rows[i : i + 1, 1]), actions, known
        )
        assert torch.allclose(things.pack()[i : i + 1], packed, atol=1e-5)
        assert torch.allclose(arm.pack()[i : i + 1], k.pack(), atol=1e-5)


def test_what_went_astray_is_not_learned_from(monkeypatch: pytest.MonkeyPatch) -> None:
    model, cache = _model(), _pushes()
    rows = torch.stack([torch.arange(4), cache.step_start[:4] + 12], 1)
    usual = physics_fit._play

    def astray(by: float) -> torch.Tensor:
        def play(*args: object) -> tuple[Things, Kinematics]:
            things, k = usual(*args)  # type: ignore[arg-type]
            return things._replace(place=things.place + torch.tensor([0.0, by, 0.0])), k

        monkeypatch.setattr(physics_fit, "_play", play)
        model.zero_grad()
        physics_fit._loss(model, cache, rows, 3).backward()
        gradient = model.physics.network[-1].bias.grad
        assert gradient is not None
        return gradient[:3].abs().sum()  # of what tells how things move

    assert float(astray(0.004)) > 0
    assert float(astray(0.05)) == 0


def test_where_no_episode_says_where_things_were_nothing_is_learned() -> None:
    model = _model()
    before = {name: weight.clone() for name, weight in model.physics.state_dict().items()}
    assert fit_physics(model, _pushes(known=False), torch.Generator().manual_seed(0)) == {}
    assert all(torch.equal(before[name], weight) for name, weight in model.physics.state_dict().items())


def test_a_tenth_of_the_episodes_is_left_for_the_report() -> None:
    unseen = _pushes().held_out
    assert int(unseen.sum()) == EPISODES // 10
