"""What OpenVLA's numbers mean: tokens, bins, a data set's bounds, and the robot's motion behind them.

A token is counted from the first of the 256 action tokens: 0 is the number 31744 of the published vocabulary and means
about 1, 255 is 31999 and means about -1 (`prismatic/vla/action_tokenizer.py` of moojink/openvla-oft).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation

from wvl_ros.errors import CheckpointError
from wvl_ros.worlds.droid import FINGER_TRAVEL, MAX_LINEAR_DELTA, MAX_ROTATION_DELTA, euler_to_matrix

Array = NDArray[np.float64]
ACTION_DIM = 7
BINS = 256

_EDGES = np.linspace(-1.0, 1.0, BINS)
_CENTRES = (_EDGES[:-1] + _EDGES[1:]) / 2  # 255: tokens 0 and 1 mean the same


def encode(actions: ArrayLike) -> NDArray[np.int64]:
    """Tokens 0..255 of normalised actions, clipped to -1..1; any shape."""
    clipped = np.clip(np.asarray(actions, float), -1.0, 1.0)
    return (BINS - np.digitize(clipped, _EDGES)).astype(np.int64)


def decode(tokens: ArrayLike) -> Array:
    """Normalised actions of tokens 0..255, at most 1/255 from what was encoded; any shape."""
    return np.asarray(_CENTRES[np.clip(BINS - 1 - np.asarray(tokens), 0, BINS - 2)])


@dataclass(frozen=True)
class Bounds:
    """The 1st and 99th percentile (D,) of a data set's numbers, which normalised are -1 and 1.

    Numbers whose `mask` is False are not normalised: the gripper's.
    """

    low: Array
    high: Array
    mask: NDArray[np.bool_]

    def restore(self, normalised: ArrayLike) -> Array:
        """The numbers themselves (..., D)."""
        array = np.asarray(normalised, float)
        return np.where(self.mask, 0.5 * (array + 1) * (self.high - self.low + 1e-8) + self.low, array)

    def normalise(self, numbers: ArrayLike) -> Array:
        """Normalised numbers (..., D), clipped to -1..1."""
        array = np.asarray(numbers, float)
        return np.clip(np.where(self.mask, 2 * (array - self.low) / (self.high - self.low + 1e-8) - 1, array), -1, 1)

    @classmethod
    def from_statistics(cls, table: Mapping[str, Any], dim: int, source: str) -> Bounds:
        """From the entry 'action' or 'proprio' of `dataset_statistics.json`, of `dim` numbers.

        Raises:
            CheckpointError: a percentile is missing or has another length.
        """
        parts = {"q01": table.get("q01"), "q99": table.get("q99"), "mask": table.get("mask", [True] * dim)}
        for name, values in parts.items():
            if not isinstance(values, list) or len(values) != dim:
                raise CheckpointError(f"{source} should have {dim} numbers '{name}', but has {values!r}.")
            if not all(isinstance(value, (int, float)) for value in values):
                raise CheckpointError(f"{source} has a '{name}' that is no number: {values!r}.")
        return cls(np.array(parts["q01"], float), np.array(parts["q99"], float), np.array(parts["mask"], bool))


@dataclass(frozen=True)
class Convention:
    """How a data set's actions and states are to be read.

    An action is a displacement of the flange (3), a rotation vector (3), both in the base's axes, and the gripper,
    whose two values are 0 and 1. One step of the policy is one step of the world (1/15 s), whatever rate it was trained
    at.

    Attributes:
        metres, radians: what 1 means, a step.
        open_is_one: whether the gripper's 1 is open.
        state: 'libero': flange position (m), rotation vector (rad), positions of both fingers (m), the second one
            negative; 'droid': flange position, extrinsic xyz Euler angles, gripper (0 open .. 1 closed).
    """

    metres: float
    radians: float
    open_is_one: bool
    state: Literal["libero", "droid"]

    @property
    def state_dim(self) -> int:
        """Numbers of a state."""
        return 8 if self.state == "libero" else 7

    def to_world(self, actions: ArrayLike) -> Array:
        """Actions (..., 7) as normalised Cartesian velocities and the gripper, 0 open or 1 closed.

        Faster ones than a step allows keep their direction.
        """
        array = np.asarray(actions, float)
        linear = _shortened(array[..., :3] * self.metres / MAX_LINEAR_DELTA)
        angular = _shortened(array[..., 3:6] * self.radians / MAX_ROTATION_DELTA)
        one = array[..., 6:] >= 0.5
        return np.concatenate([linear, angular, ~one if self.open_is_one else one], -1)

    def from_world(self, actions: ArrayLike) -> Array:
        """The reverse: actions (..., 7) of the data set from normalised Cartesian velocities and the gripper."""
        array = np.asarray(actions, float)
        scale = np.repeat([MAX_LINEAR_DELTA / self.metres, MAX_ROTATION_DELTA / self.radians], 3)
        closed = array[..., 6:] >= 0.5
        return np.concatenate([array[..., :6] * scale, ~closed if self.open_is_one else closed], -1)

    def state_of(self, pose: ArrayLike, gripper: float) -> Array:
        """The state (state_dim,) of a flange pose (6,) and a gripper position, 0 open .. 1 closed."""
        pose = np.asarray(pose, float)
        if self.state == "droid":
            return np.append(pose, gripper)
        finger = FINGER_TRAVEL * (1 - gripper)
        return np.concatenate([pose[:3], _turn(pose[3:]), [finger, -finger]])


# LIBERO: robosuite's OSC_POSE moves by 0.05 m and 0.5 rad for an action of 1; the data set's gripper, closed at 1 in
# the simulator, is inverted for training (`libero_dataset_transform`) and inverted back in `run_libero_eval.py`.
# DROID: `action_dict/cartesian_velocity` is our own action space, and `droid_baseact_transform` gives 1 - gripper.
CONVENTIONS = {
    "libero": Convention(metres=0.05, radians=0.5, open_is_one=True, state="libero"),
    "droid": Convention(metres=MAX_LINEAR_DELTA, radians=MAX_ROTATION_DELTA, open_is_one=True, state="droid"),
}


def _shortened(vectors: Array) -> Array:
    """Vectors (..., 3) of length 1 at most."""
    return vectors / np.maximum(1.0, np.linalg.norm(vectors, axis=-1, keepdims=True))


def _turn(euler: Array) -> Array:
    """Rotation vector (3,) of the two that mean the same whose x is positive: so are LIBERO's, of a hand that points
    down."""
    vector = Rotation.from_matrix(euler_to_matrix(euler)).as_rotvec()
    angle = float(np.linalg.norm(vector))
    return np.asarray(vector if vector[0] >= 0 or angle == 0 else vector * (1 - 2 * np.pi / angle))
