"""The one interface of every world: Gymnasium's, with DROID's observations and actions."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces

from wvl_ros.worlds import droid

Observation = dict[str, np.ndarray]


class World(gymnasium.Env[Observation, np.ndarray]):
    """A place a policy acts in: the robot, the tabletop or imagination, at 15 Hz.

    Observation: `exterior_image_1_left`, `exterior_image_2_left`, `wrist_image_left` uint8 (H, W, 3) RGB;
    `joint_position` float64 (7,) rad; `cartesian_position` float64 (6,) flange pose; `gripper_position` float64 (1,),
    0 open .. 1 closed.

    Action: float (7,) `cartesian_position` by default: the absolute commanded flange pose and the gripper command 0..1.
    A command further than one DROID step from the last one is shortened to one step.

    `reset(seed=, options=)` understands the options `task`, `instruction` (a wording of it), `source` (an `Episode`
    to start from) and `start` (a step inside that episode). `info` always holds:

    - `task`, `instruction`: str
    - `step`: int, control steps since reset
    - `commanded_pose`: float64 (7,), the pose and gripper command as executed (at reset: where the arm is told to stay)
    - `success`: bool, whether the task is achieved in this very step
    - `success_probability`: float 0..1, by the reward head in imagination, 0 or 1 where there is ground truth
    - `outcome`: '' while running; 'success', 'near_success' or 'failure' when the episode ended
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": droid.CONTROL_HZ}

    def __init__(
        self,
        image_height: int,
        image_width: int,
        max_steps: int,
        action_space: droid.ActionSpace = "cartesian_position",
    ) -> None:
        self.image_height = image_height
        self.image_width = image_width
        self.max_steps = max_steps
        self.action_space_name: droid.ActionSpace = action_space
        lower, upper = droid.action_bounds(action_space)
        self.action_space = spaces.Box(lower, upper, dtype=np.float64)
        image = spaces.Box(0, 255, (image_height, image_width, 3), np.uint8)
        real = {"joint_position": 7, "cartesian_position": 6, "gripper_position": 1}
        self.observation_space = spaces.Dict(
            dict.fromkeys(droid.CAMERAS, image)
            | {name: spaces.Box(-np.inf, np.inf, (dim,), np.float64) for name, dim in real.items()}
        )
        self.render_mode = "rgb_array"

    @abstractmethod
    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Starts an episode. The same seed and options give the same one. Subclasses call this to seed `np_random`."""
        super().reset(seed=seed)
        return {}, {}

    @abstractmethod
    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """One control step of 1/15 s: observation, reward (1.0 in a success state), terminated, truncated, info."""

    @property
    @abstractmethod
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks this world can be reset to."""
