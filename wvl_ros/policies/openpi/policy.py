"""pi0.5, and whatever else openpi serves for DROID: a `Policy` that asks a server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
from numpy.typing import NDArray

from wvl_ros.errors import ConfigError, ObservationError, PolicyServerError
from wvl_ros.policies.interface import Chunk
from wvl_ros.policies.openpi.client import PolicyServer
from wvl_ros.policies.openpi.images import resize_with_pad
from wvl_ros.policies.state import state_part
from wvl_ros.worlds.droid import ACTION_DIMS, CAMERAS, RESET_JOINTS

EXECUTE_STEPS = 8  # of openpi's examples/droid/main.py
WRIST = "wrist_image_left"
STATES = {"joint_position": 7, "gripper_position": 1}

# DROID's arm is soft: a joint velocity v sets its target to the measured joints + 0.2 v rad (MAX_JOINT_DELTA), and the
# arm covers this share of it in a control step. Least squares over chunks of 8 in the 11 episodes (2547 rows) of
# Ctrl-World's dataset_example/droid_subset: 0.20 to 0.35 by episode, 0.22 to 0.32 by joint, R2 0.86. Our worlds follow
# their commands stiffly: with 0.2 v a step they would go 3.3 times as far as the arm on which the policy has learned.
DROID_RESPONSE = 0.27


class OpenPiPolicy:
    """A DROID policy behind openpi's policy server: joint velocities and the gripper's position, in chunks.

    The server draws the chunks, so seeds have no effect. The length of its chunks is found out by a first request,
    which also makes the server compile its model before the robot waits for it.

    Attributes: see `Policy`.
    """

    name = "openpi"
    action_space = "joint_velocity"

    def __init__(
        self,
        server: PolicyServer,
        *,
        camera: str = "exterior_image_1_left",
        execute_steps: int = EXECUTE_STEPS,
        response: float = DROID_RESPONSE,
    ) -> None:
        """Asks the server for a first chunk.

        Args:
            server: the connection.
            camera: the exterior one that is shown to the policy, beside the wrist's.
            execute_steps: actions of a chunk to execute; all when the chunk is shorter.
            response: share of a velocity's 0.2 v rad that the arm of the training data covered in a control step.

        Raises:
            ConfigError: an argument out of its range.
            PolicyServerError: the server fails, or its policy is none for DROID.
        """
        if camera not in CAMERAS or camera == WRIST:
            raise ConfigError(f"The policy 'openpi' looks at an exterior camera, so its camera cannot be '{camera}'.")
        if execute_steps < 1:
            raise ConfigError(f"The policy 'openpi' executes at least 1 action of a chunk, not {execute_steps}.")
        if not 0 < response <= 1:
            raise ConfigError(f"The policy 'openpi' cannot have the response {response:g}; give one in 0..1.")
        self.server = server
        self.camera = camera
        self.response = response
        self.chunk_size = 0
        blank = np.zeros((2, 2, 3), np.uint8)
        observation = {camera: blank, WRIST: blank, "joint_position": RESET_JOINTS, "gripper_position": np.zeros(1)}
        self.chunk_size = len(self._ask(observation, "do nothing"))
        self.execute_steps = min(execute_steps, self.chunk_size)

    @classmethod
    def from_address(cls, address: str) -> OpenPiPolicy:
        """The policy at an address, which may carry arguments: 'ws://host:8000?camera=exterior_image_2_left&response=1'.

        Raises:
            ConfigError: it is no address, or an argument is wrong.
            PolicyServerError: no policy server is there, or its policy is none for DROID.
        """
        address, _, query = address.partition("?")
        kinds: dict[str, type] = {"camera": str, "execute_steps": int, "response": float}
        options: dict[str, Any] = {}
        for name, text in parse_qsl(query, keep_blank_values=True):
            if name not in kinds:
                raise ConfigError(
                    f"The address of a policy server has no argument '{name}'; it may have: {', '.join(kinds)}."
                )
            try:
                options[name] = kinds[name](text)
            except ValueError:
                raise ConfigError(f"'{name}={text}' in the address of a policy server is no number.") from None
        server = PolicyServer(address)
        try:
            return cls(server, **options)
        except BaseException:
            server.close()
            raise

    def reset(self, seed: int | None = None) -> None:
        """Nothing to forget: every request stands for itself."""

    def act(self, observations: Sequence[dict[str, np.ndarray]], instructions: Sequence[str]) -> Chunk:
        """Chunks for B observations, asked for one after the other.

        Raises:
            ObservationError: a camera or a state is missing or has the wrong shape.
            PolicyServerError: the server is gone, too slow, fails, or its answer cannot be used.
        """
        if len(observations) != len(instructions):
            raise ObservationError(f"There are {len(observations)} observations, but {len(instructions)} instructions.")
        chunks = np.empty((len(observations), self.chunk_size, ACTION_DIMS[self.action_space]))
        for i, (observation, instruction) in enumerate(zip(observations, instructions, strict=True)):
            chunks[i] = self._ask(observation, instruction)
        return Chunk(chunks)

    def _ask(self, observation: Mapping[str, np.ndarray], instruction: str) -> NDArray[np.float64]:
        """One chunk (T, 8): -response..response rad/0.2, the gripper 0 or 1."""
        request: dict[str, Any] = {
            "observation/exterior_image_1_left": _image(observation, self.camera),  # of whichever it is
            f"observation/{WRIST}": _image(observation, WRIST),
            **{f"observation/{name}": state_part(observation, name, STATES[name]) for name in STATES},
            "prompt": instruction,
        }
        actions = self._actions(self.server.ask(request))
        body = self.response * actions[:, :-1].clip(-1, 1)
        return np.hstack([body, actions[:, -1:] > 0.5])

    def _actions(self, answer: Mapping[str, Any]) -> NDArray[np.float64]:
        """The answer's actions (T, 8), as they came."""
        dim = ACTION_DIMS[self.action_space]
        try:
            actions = np.asarray(answer.get("actions", ()))
        except ValueError:  # lists of different lengths
            actions = np.empty(0)
        if actions.dtype.kind not in "iuf" or actions.ndim != 2 or not len(actions) or actions.shape[1] != dim:
            shape = "x".join(str(n) for n in actions.shape)
            what = f"'actions' of {actions.dtype} {shape}" if "actions" in answer else "no 'actions'"
            raise PolicyServerError(
                f"The policy server '{self.server.url}' answered with {what} where a policy for DROID gives numbers of "
                f"the shape Tx{dim}; serve one such as pi05_droid."
            )
        if not np.isfinite(actions).all():
            raise PolicyServerError(
                f"The policy server '{self.server.url}' answered with NaN or infinity; check its checkpoint."
            )
        if self.chunk_size not in (0, len(actions)):
            raise PolicyServerError(
                f"The policy server '{self.server.url}' gives {len(actions)} actions a chunk where it gave "
                f"{self.chunk_size} before; start again for the other policy."
            )
        return actions.astype(np.float64)


def _image(observation: Mapping[str, np.ndarray], camera: str) -> NDArray[np.uint8]:
    if camera not in observation:
        raise ObservationError(f"The camera '{camera}' is missing; the policy 'openpi' looks at it.")
    image = np.asarray(observation[camera])
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        shape = "x".join(str(n) for n in image.shape)
        raise ObservationError(f"The image of '{camera}' should be uint8 HxWx3 (RGB), but is {image.dtype} {shape}.")
    return resize_with_pad(image)
