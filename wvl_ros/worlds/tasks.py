"""The tabletop's four tasks: what lies where, how it is worded, and when it is done, nearly done or not done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from wvl_ros.errors import UnknownNameError
from wvl_ros.worlds.scene import BALL_RADIUS, Box, Layout

Array = NDArray[np.float64]
Variant = Literal["single", "two_objects", "two_goals"]
Mistaken = Literal["", "places", "things"]  # see `mistaken`
VARIANTS: tuple[Variant, ...] = ("single", "two_objects", "two_goals")

REST_STEPS = 5  # control steps a success state must hold before the episode ends
LIFTED = 0.03  # m above its resting height: the object was truly grasped
MISTAKE = 0.04  # m that an object may lie beside the place where somebody takes it to be, see `misplaced`
NEAR_FACTOR = 2.0  # a failure that came within twice the tolerance is a near-success (papers.md D1)


@dataclass(frozen=True)
class TableState:
    """Ground truth of one control step, in m in the base frame."""

    objects: Array  # (n, 3): boxes or balls
    goal: Array  # (3,): the goal the instruction names
    target: int  # index of the object the instruction names
    speed: float  # m/s, of the target, or the fastest ball
    gripper: float  # 0 open .. 1 closed


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        wordings: instructions with the fields {object} and {goal} (colours); `held_out` ones are for evaluation only.
        tolerance: m, how far from the goal still counts.
        distance: TableState -> m to go; success asks for at most `tolerance`.
        done: TableState -> whether this step is a success state.
    """

    name: str
    wordings: tuple[str, ...]
    held_out: tuple[str, ...]
    variants: tuple[Variant, ...]
    max_steps: int
    tolerance: float
    object_box: Box | None
    goal_radius: float | None
    goal_box: Box | None
    distance: Callable[[TableState], float]
    done: Callable[[TableState, float], bool]
    balls: tuple[int, int] | None = None
    object_area: Array = field(default_factory=lambda: np.array([[0.43, -0.14], [0.57, 0.14]]))
    goal_area: Array = field(default_factory=lambda: np.array([[0.43, -0.17], [0.59, 0.17]]))
    separation: float = 0.14

    def layout(self, variant: Variant, balls: int = 0) -> Layout:
        """What the scene must hold for a variant of the task."""
        return Layout(
            objects=0 if self.balls else 2 if variant == "two_objects" else 1,
            goals=2 if variant == "two_goals" else 1,
            balls=balls,
            object_box=self.object_box,
            goal_radius=self.goal_radius,
            goal_box=self.goal_box,
        )

    def progress(self, state: TableState) -> bool:
        """Whether a failed episode that saw this state was near to success: object lifted, or nearly at the goal."""
        lifted = self.object_box is not None and state.objects[state.target, 2] > self.object_box.height + LIFTED
        return bool(lifted or self.distance(state) < NEAR_FACTOR * self.tolerance)


def _planar(state: TableState) -> float:
    return float(np.linalg.norm(state.objects[state.target, :2] - state.goal[:2]))


def _placed(state: TableState, distance: float) -> bool:
    return distance < 0.05 and state.objects[state.target, 2] < 0.035 and state.speed < 0.05 and state.gripper < 0.5


def _pushed(state: TableState, distance: float) -> bool:
    return distance < 0.05 and state.speed < 0.05


def _stacked(state: TableState, distance: float) -> bool:
    height = state.objects[state.target, 2] - state.goal[2]
    return distance < 0.025 and abs(height - 0.045) < 0.008 and state.speed < 0.05 and state.gripper < 0.5


ZONE_RADIUS = 0.075


def _furthest_missing(state: TableState) -> float:
    """How far outside the zone, in m, the last of the nearest four fifths of all balls is; 0 when these are inside."""
    outside = np.maximum(np.linalg.norm(state.objects[:, :2] - state.goal[:2], axis=1) - ZONE_RADIUS, 0.0)
    needed = int(np.ceil(0.8 * len(outside)))
    return float(np.sort(outside)[needed - 1])


def _swept(state: TableState, distance: float) -> bool:
    return distance <= 0.0 and state.speed < 0.05


_CUBE = Box((0.02, 0.02, 0.02), 0.05, 1.0)

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            name="pick_place",
            wordings=(
                "put the {object} cube on the {goal} disk",
                "place the {object} cube on the {goal} circle",
                "pick up the {object} cube and set it on the {goal} disk",
                "move the {object} block onto the {goal} disk",
            ),
            held_out=("set the {object} block down on the {goal} circle", "the {object} cube goes on the {goal} disk"),
            variants=VARIANTS,
            max_steps=90,
            tolerance=0.05,
            object_box=_CUBE,
            goal_radius=0.05,
            goal_box=None,
            distance=_planar,
            done=_placed,
        ),
        Task(
            name="push",
            wordings=(
                "push the {object} block to the {goal} disk",
                "push the {object} block onto the {goal} circle",
                "slide the {object} block to the {goal} disk",
                "shove the {object} box onto the {goal} disk",
            ),
            held_out=(
                "slide the {object} box onto the {goal} circle",
                "get the {object} block to the {goal} disk by pushing",
            ),
            variants=VARIANTS,
            max_steps=110,
            tolerance=0.05,
            object_box=Box((0.03, 0.03, 0.025), 0.15, 0.5),
            goal_radius=0.055,
            goal_box=None,
            distance=_planar,
            done=_pushed,
            separation=0.13,
        ),
        Task(
            name="stack",
            wordings=(
                "stack the {object} cube on the {goal} block",
                "put the {object} cube on top of the {goal} block",
                "place the {object} cube on the {goal} block",
                "pick up the {object} cube and stack it on the {goal} block",
            ),
            held_out=("set the {object} cube on top of the {goal} block", "the {object} cube goes on the {goal} block"),
            variants=VARIANTS,
            max_steps=90,
            tolerance=0.025,
            object_box=_CUBE,
            goal_radius=None,
            goal_box=Box((0.025, 0.025, 0.025), 0.15, 1.0),
            distance=_planar,
            done=_stacked,
        ),
        Task(
            name="sweep",
            wordings=(
                "sweep the balls into the {goal} zone",
                "sweep all balls onto the {goal} circle",
                "gather the balls in the {goal} zone",
                "push the balls into the {goal} circle",
            ),
            held_out=("collect the balls on the {goal} circle", "bring all balls into the {goal} zone"),
            variants=("single", "two_goals"),
            max_steps=240,
            tolerance=0.025,
            object_box=None,
            goal_radius=ZONE_RADIUS,
            goal_box=None,
            distance=_furthest_missing,
            done=_swept,
            balls=(6, 10),
            separation=0.17,
        ),
    )
}


def find_task(name: str) -> Task:
    """The task of a name.

    Raises:
        UnknownNameError: there is none; the message lists them.
    """
    if name not in TASKS:
        raise UnknownNameError("task", name, TASKS)
    return TASKS[name]


@dataclass(frozen=True)
class Placement:
    """Where an episode's things start. Colours are names; the target and the goal that count are index 0."""

    variant: Variant
    objects: Array  # (n, 3): x, y in m, yaw in rad
    goals: Array  # (m, 3)
    balls: Array  # (k, 2)
    object_colors: tuple[str, ...]
    goal_colors: tuple[str, ...]


def place(
    task: Task,
    rng: np.random.Generator,
    object_colors: Sequence[str],
    goal_colors: Sequence[str],
    variant: Variant | None = None,
) -> Placement:
    """Draws the start of an episode. Half of all scenes hold one object and one goal, others a second one of either."""
    weights = np.array([2.0 if name == "single" else 1.0 for name in task.variants])
    # Also drawn where it is given: a recorded episode's seed and variant must give its scene again.
    drawn = task.variants[int(rng.choice(len(weights), p=weights / weights.sum()))]
    variant = variant or drawn
    if variant not in task.variants:
        raise UnknownNameError(f"scene variant of '{task.name}'", variant, task.variants)
    n_objects = 0 if task.balls else 2 if variant == "two_objects" else 1
    n_goals = 2 if variant == "two_goals" else 1
    spots = _spots(task, rng, 1 if task.balls else n_objects, n_goals)
    yaws = (
        rng.uniform(-0.3, 0.3, n_objects + n_goals)
        if task.name == "push"
        else rng.uniform(-np.pi / 4, np.pi / 4, n_objects + n_goals)
    )
    split = len(spots) - n_goals
    centers, goals = spots[:split], spots[split:]
    balls = np.empty((0, 2))
    if task.balls:
        balls = _cluster(rng, centers[0], int(rng.integers(task.balls[0], task.balls[1] + 1)))
        centers = centers[:0]
    return Placement(
        variant,
        np.column_stack([centers, yaws[: len(centers)]]),
        np.column_stack([goals, yaws[n_objects:]]),
        balls,
        tuple(rng.permutation(list(object_colors))[:n_objects]),
        tuple(rng.permutation(list(goal_colors))[:n_goals]),
    )


def mistaken(about: str, task: Task, placement: Placement, rng: np.random.Generator) -> Placement:
    """The scene as somebody sees it who is mistaken about its 'places', see `misplaced`, or its 'things': he takes the
    other object or goal for the one that the instruction names.

    Raises:
        UnknownNameError: there is no such mistake.
    """
    if about == "places":
        return misplaced(task, placement, rng)
    if about == "things":
        return replace(placement, objects=placement.objects[::-1], goals=placement.goals[::-1])
    raise UnknownNameError("mistake", about, ("places", "things"))


def misplaced(task: Task, placement: Placement, rng: np.random.Generator) -> Placement:
    """What to move and where to are a little elsewhere.

    The object (all balls alike) by up to `MISTAKE`, the goal by up to twice the task's tolerance; each is seen rightly
    in a third of all scenes.
    """
    shifts = []
    for furthest in (MISTAKE, NEAR_FACTOR * task.tolerance):
        length = furthest * rng.uniform() * (rng.uniform() > 1 / 3)
        angle = rng.uniform(0, 2 * np.pi)
        shifts.append(length * np.array([np.cos(angle), np.sin(angle)]))
    objects, goals = placement.objects.copy(), placement.goals.copy()
    objects[:1, :2] += shifts[0]
    goals[:1, :2] += shifts[1]
    return replace(placement, objects=objects, goals=goals, balls=placement.balls + shifts[0])


def _spots(task: Task, rng: np.random.Generator, n_objects: int, n_goals: int) -> Array:
    areas = [task.object_area] * n_objects + [task.goal_area] * n_goals
    while True:
        spots = np.stack([rng.uniform(area[0], area[1]) for area in areas])
        for i in range(1, len(spots)):
            gaps = np.linalg.norm(spots[:i] - spots[i], axis=1)
            apart = task.separation if n_objects <= i else 0.11
            if i > n_objects:  # two goals may lie closer to each other than to an object
                gaps[n_objects:] += max(0.0, task.separation - 2 * (task.goal_radius or 0.05) - 0.02)
            if gaps.min() < apart:
                break
        else:
            return spots


def _cluster(rng: np.random.Generator, center: Array, count: int) -> Array:
    """Positions (count, 2) of balls in a loose heap, no two touching."""
    spots: list[Array] = []
    radius = 0.035
    while len(spots) < count:
        spot = center + rng.uniform(-radius, radius, 2)
        if all(np.linalg.norm(spot - other) > 2.1 * BALL_RADIUS for other in spots):
            spots.append(spot)
        else:
            radius *= 1.002  # widen until all fit
    return np.stack(spots)
