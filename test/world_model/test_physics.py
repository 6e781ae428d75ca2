"""How things move: told alike wherever on the table a push happens, and only what the hand can reach."""

from __future__ import annotations

import math

import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from wvl_ros.checkpoints import find
from wvl_ros.world_model.kinematics import TCP_OFFSET, Kinematics
from wvl_ros.world_model.loading import load_world_model
from wvl_ros.world_model.physics import FACTS, Physics, see
from wvl_ros.world_model.things import MOST, Things


def _arm(x: float, y: float, turn: float = 0.0, height: float = 0.02, gripper: float = 1.0) -> Kinematics:
    pose = torch.tensor([[x, y, height + TCP_OFFSET, math.pi, 0.0, turn]])
    return Kinematics.at_rest(
        pose, torch.full((1, 1), gripper), torch.cat([pose, torch.full((1, 1), round(gripper))], 1)
    )


def _thing(x: float, y: float, yaw: float = 0.0, half: float = 0.03, height: float = 0.025) -> Things:
    place, there = torch.zeros(1, MOST, 3), torch.zeros(1, MOST)
    place[0, 0], there[0, 0] = torch.tensor([x, y, height]), 1
    return Things.at_rest(place, torch.full((1, MOST), yaw), torch.full((1, MOST), half), there)


def _fresh() -> Physics:
    torch.manual_seed(0)
    return Physics()


@given(st.floats(-math.pi, math.pi), st.floats(-0.1, 0.1), st.floats(-0.2, 0.2))
def test_a_push_elsewhere_and_turned_is_the_same_push(turn: float, x: float, y: float) -> None:
    physics, cosine, sine = _fresh(), math.cos(turn), math.sin(turn)

    def there(a: float, b: float) -> tuple[float, float]:
        return 0.5 + x + cosine * a - sine * b, y + sine * a + cosine * b

    with torch.no_grad():
        here, _ = physics(_arm(0.5, 0.0), _arm(0.51, 0.01), _thing(0.55, 0.02, 0.3))
        moved, _ = physics(
            _arm(*there(0.0, 0.0), turn=turn),
            _arm(*there(0.01, 0.01), turn=turn),
            _thing(*there(0.05, 0.02), 0.3 + turn),
        )
    a, b, up = here.motion[0, 0].tolist()
    expected = torch.tensor([cosine * a - sine * b, sine * a + cosine * b, up])
    assert torch.allclose(moved.motion[0, 0], expected, atol=1e-5)
    assert torch.allclose(moved.spin[0, 0], here.spin[0, 0], atol=1e-4)


@given(st.floats(-0.05, 0.05), st.floats(-0.05, 0.05), st.floats(-math.pi, math.pi), st.floats(-1.5, 1.5))
def test_what_happens_on_one_side_of_the_hand_happens_on_the_others(
    x: float, y: float, turn: float, yaw: float
) -> None:
    physics = _fresh()
    everywhere = torch.ones(1, dtype=torch.bool)
    arms = _arm(0.5, 0.02, turn), _arm(0.51, 0.03, turn)
    things = _thing(0.5 + x, 0.02 + y, yaw)
    beside = see(*arms, things).facts[0, 0]
    assume(
        float(beside[:2].abs().min()) > 0.02 and float(beside[6].abs()) < 1.55
    )  # in one quarter, and seen from one side
    mirror = torch.tensor([1.0, -1.0, 1.0])
    with torch.no_grad():
        here, arm = physics(*arms, things)
        images = (k.mirrored(everywhere) for k in arms)
        there, seen = physics(*images, things._replace(place=things.place * mirror, yaw=-things.yaw))
    assert torch.allclose(there.place, here.place * mirror, atol=1e-4)
    assert torch.allclose(there.spin, -here.spin, atol=1e-3)
    assert torch.allclose(seen.position, arm.mirrored(everywhere).position, atol=1e-4)


def test_what_is_out_of_reach_or_not_there_stays_where_it_is() -> None:
    physics = _fresh()
    with torch.no_grad():
        far, arm = physics(_arm(0.5, 0.0), _arm(0.51, 0.0), _thing(0.7, 0.0))
        none, _ = physics(_arm(0.5, 0.0), _arm(0.51, 0.0), Things.none(1))
    assert torch.equal(far.place, _thing(0.7, 0.0).place)
    assert not none.motion.any()
    assert float(arm.gripper) == 1.0
    facts, frame = see(_arm(0.5, 0.0), _arm(0.51, 0.0), _thing(0.7, 0.0))
    assert facts.shape == (1, MOST, FACTS)
    assert frame.shape == (1, MOST, 2, 2)


def test_the_shipped_one_pushes_what_is_before_the_hand_and_closes_on_what_is_between_the_fingers() -> None:
    physics = load_world_model(find("world_model", "small")).physics
    things = _thing(0.56, 0.0)
    with torch.no_grad():
        for step in range(5):
            things, _ = physics(_arm(0.5 + 0.01 * step, 0.0), _arm(0.51 + 0.01 * step, 0.0), things)
        pushed = things.place[0, 0] - _thing(0.56, 0.0).place[0, 0]
        beside = _thing(0.56, 0.12)
        after, _ = physics(_arm(0.5, 0.0), _arm(0.51, 0.0), beside)
    assert 0.01 < float(pushed[0]) < 0.06
    assert abs(float(pushed[1])) < 0.01
    assert float((after.place - beside.place).norm()) < 0.003
    stops = {}
    for name, start in (("between", _thing(0.5, 0.0, math.pi / 4, 0.02, 0.02)), ("none", Things.none(1))):
        k, cube, command = _arm(0.5, 0.0, gripper=0.0), start, torch.ones(1, 1)
        for gripper in (0.1, 0.3, 0.5, 0.7, 0.9, 1.0, 1.0, 1.0):
            then = k._replace(gripper=torch.full((1, 1), gripper), gripper_command=command)
            with torch.no_grad():
                cube, k = physics(k, then, cube)
        stops[name] = float(k.gripper)
    assert stops["none"] == 1.0
    assert 0.3 < stops["between"] < 0.75


def test_a_hand_that_presses_on_a_block_stays_above_it() -> None:
    model = load_world_model(find("world_model", "small"))
    packed = free = _arm(0.5, 0.0, height=0.09).pack()
    things, known = _thing(0.5, 0.0).pack(), torch.ones(1)
    with torch.no_grad():
        for step in range(1, 9):
            pose = [0.5, 0.0, max(0.02, 0.09 - 0.012 * step) + TCP_OFFSET, math.pi, 0.0, 0.0, 1.0]
            arm, _, things = model.play(packed, things, torch.tensor([[pose]]), known)
            alone, _ = model.move(free, torch.tensor([[pose]]), known)
            packed, free = arm.pack(), alone.pack()
    assert float(alone.state()[0, 2]) < 0.03
    assert float(arm.state()[0, 2]) > 0.045  # its upper side is 5 cm above the table
    assert float(Things.unpack(things).place[0, 0, 2]) > 0.015
