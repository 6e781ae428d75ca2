"""Contact is fitted on frames in which a gripper closes or the hand is low, and reports on episodes it has not seen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from wvl_ros.sans.episode import Episode
from wvl_ros.training import contact_fit
from wvl_ros.training.contact_fit import _own_moments, _tell, _unseen, fit_contact, imagined_contacts
from wvl_ros.training.contact_losses import misplaced, movement_loss
from wvl_ros.training.contact_moments import Moments, frames_by_kind, true_moments
from wvl_ros.training.things import COLUMNS
from wvl_ros.training.world_model_data import TrainingData, open_data
from wvl_ros.training.world_model_settings import WorldModelTraining, build_model, rig_facts
from wvl_ros.world_model import composition
from wvl_ros.world_model.contact import CELL, CELLS, likeliest
from wvl_ros.world_model.kinematics import GRIPPER, TCP_OFFSET, Kinematics, matrix_to_euler
from wvl_ros.world_model.model import WorldModel

SETTINGS = WorldModelTraining(model={"image_size": 32, "channels": 8, "condition_dim": 16})


@pytest.fixture
def data(make_episode: Callable[..., Episode], tmp_path: Path) -> TrainingData:
    for i in range(24):
        outcome = ("success", "failure")[i % 2]
        make_episode(seed=i, outcome=outcome, steps=(25, 19)[i // 2 % 2]).save(tmp_path / f"{i}.safetensors")
    return open_data(SETTINGS, SETTINGS.model, tmp_path)


def test_it_learns_where_a_gripper_that_closes_is_next(data: TrainingData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contact_fit, "_BATCH", 24)
    torch.manual_seed(0)
    model = build_model(SETTINGS, data.cache)
    assert fit_contact(model, data.cache, torch.Generator().manual_seed(0), 0) == {}
    found = fit_contact(model, data.cache, torch.Generator().manual_seed(0), 250)
    assert {"grip_closing_right", "grip_other_right"} <= set(found)  # of two unseen episodes: too few to ask more
    closing = frames_by_kind(data.cache)["closing"]
    with torch.no_grad():
        told, true = _tell(model, true_moments(data.cache, closing[~_unseen(data.cache)[closing[:, 0]]]))
    assert float(((likeliest(told.grip) - true).abs() < 0.1).float().mean()) > 0.9


def test_closing_is_when_it_moves_and_is_told_to_close(data: TrainingData) -> None:
    cache = data.cache
    pools = frames_by_kind(cache)
    assert sum(len(pool) for pool in pools.values()) == int((cache.frame_count - 1).sum())
    episode, index = pools["closing"].unbind(1)
    before, after = (cache.kinematics[cache.step(episode, index + k), GRIPPER] for k in (0, 1))
    assert bool((after > before + 0.02).all())


def test_it_learns_from_what_the_model_draws_as_well(data: TrainingData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contact_fit, "_BATCH", 24)
    torch.manual_seed(0)
    model = build_model(SETTINGS, data.cache)
    drawn: list[int] = []
    model.register_forward_pre_hook(lambda _, given: drawn.append(len(given[0])))
    own = imagined_contacts(model, data.cache, torch.Generator().manual_seed(0), 40)
    assert drawn == sorted(drawn, reverse=True)
    assert drawn[-1] < drawn[0]  # a rollout ends with its last closing
    assert own.telling.any()
    assert (~own.telling).any()
    closing = _own_moments(data.cache, own, own.telling.nonzero()[:, 0])
    gap = closing.next_kinematics[:, GRIPPER] - closing.kinematics[:, GRIPPER]
    assert float(gap.min()) > 0.02  # told as it truly was, so that the next one follows from it
    found = fit_contact(model, data.cache, torch.Generator().manual_seed(0), 250, own)
    assert {"grip_closing_right", "grip_other_right"} <= set(found)
    with torch.no_grad():
        told, true = _tell(model, closing)
    assert float(((likeliest(told.grip) - true).abs() < 0.1).float().mean()) > 0.9


@pytest.mark.parametrize("known", [False, True])
def test_it_learns_how_what_is_pushed_moves_told_where_it_is_or_not(known: bool) -> None:
    torch.manual_seed(0)
    model = WorldModel(**rig_facts("tabletop"), channels=8, condition_dim=16)
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.contact.parameters(), 2e-3)

    def draw(count: int) -> tuple[Moments, torch.Tensor]:
        """A closed hand that pushes a disk before it by a few cm: half of it, as something slips."""
        way = 0.04 * torch.rand(count, generator=generator) + 0.01
        here = 0.5 + 0.1 * (torch.rand(count, generator=generator) - 0.5)
        arms = [_closed(here), _closed(here + way)]
        things = [here + 0.03, here + 0.03 + way / 2]
        frames = [_painted(model, arm, x) for arm, x in zip(arms, things, strict=True)]
        actions = torch.cat([matrix_to_euler(arms[1].rotation), torch.ones(count, 1)], 1)
        actions = torch.cat([arms[1].position, actions], 1)[:, None].repeat(1, 3, 1)
        now, then = (arm.pack() for arm in arms)
        told = [_poses((x, 0.0)) if known else torch.full((count, COLUMNS), torch.nan) for x in things]
        return Moments(frames[0], frames[0], frames[1], now, now, then, actions, torch.ones(count), *told), way / 2

    for _ in range(100):
        moments, _ = draw(16)
        told, _ = _tell(model, moments)
        optimizer.zero_grad()
        movement_loss(model, moments, told).backward()
        optimizer.step()
    moments, true = draw(64)
    with torch.no_grad():
        told, _ = _tell(model, moments)
    way = (told.motion[:, :1] * told.below.opening + told.motion[:, 1:2] * told.below.across)[
        :, 0
    ]  # along the base's x
    assert float((way - true).abs().mean()) < 0.005
    assert float(np.corrcoef(way.numpy(), true.numpy())[0, 1]) > 0.8


def test_all_that_moves_is_marked_and_its_motion_learned_nothing_else() -> None:
    model = WorldModel(**rig_facts("tabletop"), channels=8, condition_dim=16)
    here, zero = torch.full((1,), 0.5), torch.zeros(1, 24)
    now, then = _closed(here), _closed(here + 0.02)
    action = torch.cat([then.position, matrix_to_euler(then.rotation), torch.ones(1, 1)], 1)[:, None].repeat(1, 3, 1)
    frame = _painted(model, now, here)
    # Two balls before the hand go 2 cm with it, a third lies beside them, a fourth rolls far away.
    before = _poses((0.54, 0.0), (0.54, 0.05), (0.54, -0.05), (0.2, 0.3))
    after = _poses((0.56, 0.0), (0.56, 0.05), (0.54, -0.05), (0.3, 0.3))
    moments = Moments(frame, frame, frame, now.pack(), now.pack(), then.pack(), action, torch.ones(1), before, after)
    told, _ = _tell(model, moments)
    cells = told.below.spots(model.contact.get_buffer("cells")[None])[0]
    true = torch.zeros(len(cells), dtype=torch.bool)
    for place in ((0.56, 0.0), (0.56, 0.05)):
        true |= (cells - torch.tensor(place)).abs().amax(1) < 0.02 + CELL / 2
    right = told._replace(
        motion=torch.cat(
            [told.below.local(told.below.center[:, None] + torch.tensor([0.02, 0.0]))[:, 0], zero[:, :1]], 1
        ),
        mask=torch.where(true, 20.0, -20.0).view(1, CELLS, CELLS),
    )
    parts = misplaced(model, moments, right)
    assert all(float(parts[name]) < 1e-3 for name in ("motion", "mask", "apart"))
    assert float(parts["way"]) == pytest.approx(0.02, abs=1e-6)
    still = misplaced(model, moments, right._replace(motion=torch.zeros(1, 3)))
    assert float(still["apart"]) == pytest.approx(0.02, abs=1e-6)
    assert float(still["motion"]) > 1
    assert float(misplaced(model, moments._replace(next_things=before), right)["mask"]) > 0.5


def test_an_episode_and_its_mirror_image_are_unseen_together(data: TrainingData) -> None:
    unseen = _unseen(data.cache)
    own = len(data.own)
    assert len(data.cache) == 2 * own
    assert torch.equal(unseen[:own], unseen[own:])
    assert 0 < int(unseen.sum()) < len(unseen) // 2


def _poses(*places: tuple[torch.Tensor | float, float]) -> torch.Tensor:
    """Rows of things of 4 cm at places (x, y) on the table."""
    count = max(x.numel() if isinstance(x, torch.Tensor) else 1 for x, _ in places)
    poses = torch.full((count, COLUMNS // 5, 5), torch.nan)
    for i, (x, y) in enumerate(places):
        poses[:, i] = torch.tensor([0.0, y, 0.02, 0.0, 0.02])
        poses[:, i, 0] = x
    return poses.flatten(1)


def _closed(x: torch.Tensor) -> Kinematics:
    """Closed hands at (x, 0), 2 cm above the table, that stand still."""
    pose = torch.tensor([[0.0, 0.0, 0.02 + TCP_OFFSET, np.pi, 0.0, np.pi / 4]]).repeat(len(x), 1)
    pose[:, 0] = x
    return Kinematics.at_rest(pose, torch.ones(len(x), 1), torch.cat([pose, torch.ones(len(x), 1)], 1))


def _painted(model: WorldModel, arm: Kinematics, x: torch.Tensor) -> torch.Tensor:
    """Frames (B, C, G, G) of red disks of 2 cm around (x, 0) on a grey table, without the arm."""
    images = torch.zeros(len(x), 3, 3, 64, 64)
    for view in range(3):
        spots = model.geometry.level(view, arm, 0.02)
        inside = ((spots[..., 0] - x[:, None]).square() + spots[..., 1].square()) < 0.02**2
        images[:, view, 0] += inside.float().unflatten(1, (64, 64))
    return composition.frame(composition.unimages(images, 4))
