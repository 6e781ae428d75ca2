"""Scripted experts for the tabletop's tasks, with knobs that give any success rate between 5 and 100 %.

They read the ground truth of a `TabletopWorld` and command absolute flange poses, the hand pointing down, its yaw
fixed: the fingers square a turned cube up as they close.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wvl_ros.errors import ConfigError
from wvl_ros.worlds import droid, scene
from wvl_ros.worlds.tabletop import TabletopWorld
from wvl_ros.worlds.tasks import ZONE_RADIUS

Array = NDArray[np.float64]

HAND_DOWN = np.array([np.pi, 0.0, 0.0])  # extrinsic xyz Euler of the flange when the hand points straight down
_GRASP_HEIGHT = 0.021
_FINGERTIP = np.array([0.0, 0.0, scene.TCP_OFFSET])


@dataclass(frozen=True)
class Skill:
    """How well an expert acts; the defaults are flawless.

    Attributes:
        noise: standard deviation of the noise on each executed velocity, in DROID steps (1 = 0.075 m).
        drift: standard deviation of slow (correlated) noise, same unit.
        grasp_bias: m, how far beside the object it reaches, in a direction drawn an episode.
        goal_bias: m, how far beside the goal it aims, likewise.
        release: control step at which it opens the gripper whatever happens (None: never).
        hold: whether it never opens the gripper again.
        speed: largest commanded speed, in DROID steps.
    """

    noise: float = 0.0
    drift: float = 0.0
    grasp_bias: float = 0.0
    goal_bias: float = 0.0
    release: int | None = None
    hold: bool = False
    speed: float = 0.5

    def __post_init__(self) -> None:
        for name in ("noise", "drift", "grasp_bias", "goal_bias"):
            if not 0.0 <= getattr(self, name) <= 5.0:
                raise ConfigError(f"An expert's {name} must lie between 0 and 5, not {getattr(self, name)}.")
        if not 0.05 <= self.speed <= 1.0:
            raise ConfigError(f"An expert's speed must lie between 0.05 and 1 DROID steps, not {self.speed}.")


class Expert(ABC):
    """Base of the four experts: `act()` gives the next action (7,), an absolute commanded pose and gripper.

    `label` (7,) is what it would do without its noise: the label for behaviour cloning at the very same state.
    """

    gain = 0.6

    def __init__(self, world: TabletopWorld, skill: Skill | None = None, seed: int = 0) -> None:
        self.world, self.skill = world, skill or Skill()
        self.rng = np.random.default_rng(seed)
        self.grasp_offset = self._offset(self.skill.grasp_bias)
        self.goal_offset = self._offset(self.skill.goal_bias)
        self.drift = np.zeros(6)
        self.steps = 0
        self.label = np.zeros(7)

    def _offset(self, length: float) -> Array:
        angle = self.rng.uniform(0, 2 * np.pi)
        return length * np.array([np.cos(angle), np.sin(angle)])

    def act(self) -> Array:
        """The next action (7,): flange pose in m and rad, gripper 0..1."""
        target, gripper, gain = self.plan()
        start = self.world.commanded_pose[:6]
        goal = np.concatenate([target + _FINGERTIP, HAND_DOWN])
        velocity = gain * droid.pose_velocity(start, goal)
        velocity /= max(
            1.0,
            float(np.linalg.norm(velocity[:3])) / self.skill.speed,
            float(np.linalg.norm(velocity[3:])) / self.skill.speed,
        )
        self.label = np.append(droid.move_pose(start, velocity), gripper)
        if self.skill.drift:
            self.drift = 0.85 * self.drift + 0.53 * self.skill.drift * self.rng.normal(size=6)
        if self.skill.noise:
            velocity = velocity + self.rng.normal(0.0, self.skill.noise, 6)
        if self.skill.release is not None and self.steps >= self.skill.release:
            gripper = 0.0
        self.steps += 1
        return np.append(droid.move_pose(start, velocity + self.drift), gripper)

    @abstractmethod
    def plan(self) -> tuple[Array, float, float]:
        """Where the fingertips should go (3,) in m, the gripper command and the gain towards the target."""

    # -- what it sees -------------------------------------------------------------------------------------------------

    @property
    def tip(self) -> Array:
        """Fingertip position (3,), measured."""
        pose = self.world.measured_pose
        return np.asarray(pose[:3] + droid.euler_to_matrix(pose[3:])[:, 2] * scene.TCP_OFFSET)

    def near(self, target: Array, tolerance: float) -> bool:
        """Whether the measured fingertips are within `tolerance` m of a point."""
        return bool(np.linalg.norm(target - self.tip) < tolerance)


class PickPlaceExpert(Expert):
    """Grasps the object, carries it over the goal and sets it down; stacks when the goal is a block. Memoryless."""

    def plan(self) -> tuple[Array, float, float]:
        """Decides from the present state alone, so a disturbed expert recovers and its labels are learnable."""
        state = self.world.table_state()
        tip, cube, goal = self.tip, state.objects[0], state.goal
        rest = self.world.task.object_box.height if self.world.task.object_box else 0.02
        top = 0.05 if self.world.task.goal_box else 0.0  # height of the surface to set it down on
        aim = goal[:2] + self.goal_offset
        reach = cube[:2] + self.grasp_offset
        apart = float(np.linalg.norm(tip - np.array([*reach, max(cube[2], _GRASP_HEIGHT)])))
        beside = float(np.linalg.norm(tip[:2] - reach))
        to_go = float(np.linalg.norm(cube[:2] - aim))
        close = apart < 0.025 + np.linalg.norm(self.grasp_offset)
        held = close and state.gripper > 0.38
        low = cube[2] < top + rest + 0.012
        accuracy = 0.010 if top else 0.03
        if (
            to_go < accuracy
            and low
            and (state.gripper < 0.40 or tip[2] > cube[2] + 0.03 or held)
            and not self.skill.hold
        ):
            opened = state.gripper < 0.3
            return np.array([*tip[:2], top + 0.20 if opened else tip[2]]), 0.0, 1.0
        if held:
            clear = top + 0.03
            cruise = clear + min(0.13 - top, max(0.0, (to_go - 0.012) * 3.0))
            if tip[2] < cruise - 0.04 and to_go > 0.05:
                return np.array([*tip[:2], cruise]), 1.0, 0.8
            slip = np.clip(cube[:2] - tip[:2], -0.03, 0.03)
            in_hand = np.clip(tip[2] - cube[2], -0.02, 0.02)
            lowered = top + rest + 0.003 + in_hand  # brings the cube, not the tips, to rest
            height = cruise if to_go > (0.008 if top else 0.02) else lowered
            return np.array([*(aim - slip), height]), 1.0, 0.8
        height = _GRASP_HEIGHT + max(0.0, cube[2] - rest) * (to_go < 0.05) + min(0.12, max(0.0, (beside - 0.012) * 3.0))
        closing = apart < 0.012 or (close and state.gripper > 0.08)
        if closing:
            return np.array([*reach, _GRASP_HEIGHT + max(0.0, cube[2] - rest)]), 1.0, 0.8
        return np.array([*reach, height]), 0.0, 0.8


class PushExpert(Expert):
    """Gets behind the object with the gripper closed and pushes it to the goal. Memoryless."""

    _BEHIND = 0.075
    _CONTACT = 0.047
    _LOW = 0.022
    _HIGH = 0.11

    def plan(self) -> tuple[Array, float, float]:
        """Decides from the present state alone."""
        state = self.world.table_state()
        tip, cube, goal = self.tip, state.objects[0], state.goal
        aim = goal[:2] + self.goal_offset
        way = aim - cube[:2]
        to_go = float(np.linalg.norm(way))
        ahead = way / (to_go + 1e-9)
        block = cube[:2] + self.grasp_offset
        relative = tip[:2] - block
        along = float(relative @ ahead)
        aside = relative - along * ahead
        if to_go < 0.02:
            return np.array([*(tip[:2] - 0.02 * ahead), 0.2]), 1.0, 0.8
        behind = along < -self._CONTACT + 0.012 and np.linalg.norm(aside) < 0.022
        if behind and tip[2] < self._LOW + 0.02:
            target = tip[:2] - 1.5 * aside + ahead * min(0.035, 0.5 * to_go + 0.008)
            return np.array([*target, self._LOW]), 1.0, 0.8
        start = block - ahead * self._BEHIND
        off = float(np.linalg.norm(tip[:2] - start))
        height = self._LOW + min(self._HIGH - self._LOW, max(0.0, (off - 0.012) * 4.0))
        if tip[2] < 0.075 and off > 0.03:  # rise before crossing the object
            return np.array([*tip[:2], self._HIGH]), 1.0, 0.8
        return np.array([*start, height]), 1.0, 0.8


class SweepExpert(Expert):
    """Sweeps the outlying balls into the zone, one after another, with the closed gripper."""

    _LOW = 0.017
    _HIGH = 0.06
    _BEHIND = 0.032

    def __init__(self, world: TabletopWorld, skill: Skill | None = None, seed: int = 0) -> None:
        super().__init__(world, skill, seed)
        self.ball: int | None = None

    def plan(self) -> tuple[Array, float, float]:
        """Chooses the outermost ball, gets behind it and pushes it inwards until it is well inside."""
        state = self.world.table_state()
        tip, aim = self.tip, state.goal[:2] + self.goal_offset
        gaps = np.linalg.norm(state.objects[:, :2] - aim, axis=1)
        inside = ZONE_RADIUS - 0.02
        if self.ball is not None and gaps[self.ball] < inside:
            self.ball = None
        if self.ball is None:
            if (gaps < ZONE_RADIUS - 0.005).all():
                return np.array([*tip[:2], 0.2]), 1.0, 0.8
            self.ball = int(np.argmax(gaps))
        ball = state.objects[self.ball, :2] + self.grasp_offset
        ahead = (aim - ball) / (np.linalg.norm(aim - ball) + 1e-9)
        relative = tip[:2] - ball
        along = float(relative @ ahead)
        aside = relative - along * ahead
        if along < -0.008 and np.linalg.norm(aside) < 0.014 and tip[2] < self._LOW + 0.012:
            return np.array([*(tip[:2] - 1.5 * aside + 0.03 * ahead), self._LOW]), 1.0, 0.8
        start = ball - ahead * self._BEHIND
        off = float(np.linalg.norm(tip[:2] - start))
        height = self._LOW + min(self._HIGH - self._LOW, max(0.0, (off - 0.008) * 4.0))
        if tip[2] < self._HIGH - 0.02 and off > 0.03:
            return np.array([*tip[:2], self._HIGH]), 1.0, 0.8
        return np.array([*start, height]), 1.0, 0.8


_EXPERTS: dict[str, type[Expert]] = {
    "pick_place": PickPlaceExpert,
    "stack": PickPlaceExpert,
    "push": PushExpert,
    "sweep": SweepExpert,
}


def make_expert(world: TabletopWorld, skill: Skill | None = None, seed: int = 0) -> Expert:
    """The expert for the task the world has just been reset to."""
    return _EXPERTS[world.task.name](world, skill, seed)


class Wanderer(Expert):
    """Smooth random motion above the table with sudden gripper changes: what no demonstration holds."""

    def __init__(self, world: TabletopWorld, skill: Skill | None = None, seed: int = 0) -> None:
        super().__init__(world, skill, seed)
        self.velocity, self.gripper = np.zeros(6), 0.0

    def plan(self) -> tuple[Array, float, float]:
        """The point it is drawn to, its gripper, which toggles now and then, and how strongly it is drawn."""
        if self.rng.random() < 0.06:
            self.gripper = 1.0 - self.gripper
        return np.array([0.5, 0.0, 0.12]), self.gripper, 0.8

    def act(self) -> Array:
        """A step of an Ornstein-Uhlenbeck walk, kept over the table."""
        self.velocity = 0.9 * self.velocity + 0.22 * self.rng.normal(size=6)
        centre, gripper, pull = self.plan()
        velocity = np.clip(self.velocity * (1.0, 1.0, 0.8, 0.3, 0.3, 0.3), -1, 1)
        velocity[:3] += pull * np.clip((centre - self.tip) / (0.25, 0.3, 0.3), -1, 1)
        self.label = np.append(droid.move_pose(self.world.commanded_pose[:6], velocity), gripper)
        return self.label.copy()
