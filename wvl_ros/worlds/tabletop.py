"""The tabletop: an FR3 in MuJoCo with four language tasks, the stand-in for the real robot."""

from __future__ import annotations

import copy
import functools
import logging
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from wvl_ros.errors import ConfigError, UnknownNameError
from wvl_ros.sans.episode import Episode
from wvl_ros.worlds import droid, kinematics, scene
from wvl_ros.worlds.interface import Observation, World
from wvl_ros.worlds.tasks import REST_STEPS, TASKS, Placement, TableState, Task, Variant, find_task, mistaken, place

Array = NDArray[np.float64]
log = logging.getLogger(__name__)

FLOOR = 0.012  # m, the lowest height the fingertips are commanded to
_RESET_SPREAD = 0.03  # rad, uniform, around DROID's reset joints
_IK_STEPS = 3


@functools.lru_cache(maxsize=32)
def _compiled(layout: scene.Layout, width: int, height: int) -> mujoco.MjModel:
    return scene.build(layout, width, height)


@functools.lru_cache(maxsize=1)
def _calibration() -> dict[str, dict[str, Any]]:
    model = scene.build(TASKS["pick_place"].layout("single"))
    data = mujoco.MjData(model)
    data.qpos[:7] = droid.RESET_JOINTS
    mujoco.mj_forward(model, data)
    flange, turn = kinematics.flange_pose(droid.RESET_JOINTS)
    calibration: dict[str, dict[str, Any]] = {}
    for camera in droid.CAMERAS:
        index = model.camera(camera).id
        position, rotation = data.cam_xpos[index].copy(), data.cam_xmat[index].reshape(3, 3).copy()
        on_arm = model.cam_bodyid[index] != 0
        calibration[camera] = {
            "position": turn.T @ (position - flange) if on_arm else position,
            "rotation": turn.T @ rotation if on_arm else rotation,
            "fovy_deg": float(model.cam_fovy[index]),
            "parent": "flange" if on_arm else "base",
        }
    return calibration


class TabletopWorld(World):
    """FR3 on a table with cubes, blocks, disks and balls. See `World` for observations, actions and `info`.

    A commanded pose is turned into joint targets by damped least squares from the last commanded joints; the servo
    follows a ramp to them with velocity feed-forward: the arm is within 4 mm of a resting command after a few steps.

    Args:
        task: the task after a reset that names none.
        image_height, image_width: pixels of all three cameras; `cameras` False renders none (states only, much faster).
        image_stride: render every so many steps; in between the last images are given again.
        max_steps: control steps before truncation; None takes the task's own.
        variant: 'single', 'two_objects' or 'two_goals' for every episode; None draws it.
        action_space: any of DROID's four.

    Raises:
        UnknownNameError: no such task or variant.
    """

    def __init__(
        self,
        task: str = "pick_place",
        image_height: int = 128,
        image_width: int = 128,
        *,
        cameras: bool = True,
        image_stride: int = 1,
        max_steps: int | None = None,
        variant: Variant | None = None,
        action_space: droid.ActionSpace = "cartesian_position",
    ) -> None:
        self._task: Task = find_task(task)
        self._fixed_max_steps = max_steps
        super().__init__(image_height, image_width, max_steps or self._task.max_steps, action_space)
        if image_stride < 1:
            raise ConfigError(f"image_stride must be at least 1, not {image_stride}.")
        self._cameras, self.image_stride, self._variant = cameras, image_stride, variant
        self._default_task = task
        self._renderers: dict[int, mujoco.Renderer] = {}
        self._images: dict[str, NDArray[np.uint8]] = {}
        self._lower = kinematics.JOINT_LOWER + 0.05
        self._upper = kinematics.JOINT_UPPER - 0.05
        self.placement: Placement | None = None
        self._layout: scene.Layout | None = None
        self._model: mujoco.MjModel
        self._data: mujoco.MjData

    @property
    def tasks(self) -> tuple[str, ...]:
        """The four tasks."""
        return tuple(TASKS)

    @property
    def task(self) -> Task:
        """The task of the running episode."""
        return self._task

    # -- episode ------------------------------------------------------------------------------------------------------

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Starts an episode.

        Options: `task`, `instruction`, `variant`; a `source` episode of the tabletop gives its task, seed, instruction;
        `mistaken` gives the same scene as somebody takes it to be who is mistaken about it (`tasks.mistaken`).
        """
        wanted: dict[str, Any] = dict(options or {})
        source: Episode | None = wanted.get("source")
        if source is not None:
            if "variant" not in source.extra or "seed" not in source.extra:
                raise ConfigError(
                    "The tabletop can only start from an episode of its own (with its seed); leave `source` empty."
                )
            of_source = {
                "task": source.task,
                "instruction": source.instruction,
                "variant": source.extra["variant"],
            }
            wanted = of_source | wanted
            seed = int(str(source.extra["seed"])) if seed is None else seed
        super().reset(seed=seed)
        self._task = find_task(wanted.get("task") or self._default_task)
        self.max_steps = self._fixed_max_steps or self._task.max_steps
        rng = self.np_random
        joints = droid.RESET_JOINTS + rng.uniform(-_RESET_SPREAD, _RESET_SPREAD, 7)
        variant = wanted.get("variant") or self._variant
        placement = place(self._task, rng, list(scene.OBJECT_COLORS), list(scene.GOAL_COLORS), variant)
        wording = self._task.wordings[int(rng.integers(len(self._task.wordings)))]
        self._instruction = wanted.get("instruction") or wording.format(
            object=placement.object_colors[0] if placement.object_colors else "", goal=placement.goal_colors[0]
        )
        if wanted.get("mistaken"):  # drawn last: all else is as it truly is
            placement = mistaken(wanted["mistaken"], self._task, placement, rng)
        self.placement = placement
        self._build(placement)
        self._arrange(placement, joints)
        self.commanded_joints = joints
        self.commanded_pose = np.append(droid.forward_kinematics(joints), 0.0)
        self.step_count, self._success_run, self._near = 0, 0, False
        self._images = {}
        return self._observe(), self._info(self.table_state(), False, "")

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """One control step; see `World.step`. The episode ends when a success state has held for 5 steps."""
        if self.placement is None:
            raise ConfigError("Call reset() before step().")
        checked = droid.check_action(action, self.action_space_name)
        before = self.commanded_joints
        self.commanded_joints = self._targets(checked[:-1])
        self.commanded_pose = np.append(droid.forward_kinematics(self.commanded_joints), checked[-1])
        self._drive(before, self.commanded_joints, float(checked[-1]))
        self.step_count += 1
        state = self.table_state()
        success = self._task.done(state, self._task.distance(state))
        self._near = self._near or self._task.progress(state)
        self._success_run = self._success_run + 1 if success else 0
        terminated = self._success_run >= REST_STEPS
        truncated = not terminated and self.step_count >= self.max_steps
        outcome = "success" if terminated else "" if not truncated else "near_success" if self._near else "failure"
        return self._observe(), float(success), terminated, truncated, self._info(state, success, outcome)

    @property
    def near(self) -> bool:
        """Whether the running episode was near to success at some step (see `Task.progress`)."""
        return self._near

    def _info(self, state: TableState, success: bool, outcome: str) -> dict[str, Any]:
        assert self.placement is not None
        return {
            "task": self._task.name,
            "instruction": self._instruction,
            "step": self.step_count,
            "commanded_pose": self.commanded_pose.copy(),
            "success": success,
            "success_probability": float(success),
            "outcome": outcome,
            "variant": self.placement.variant,
            "distance": self._task.distance(state),
        }

    # -- physics ------------------------------------------------------------------------------------------------------

    def _build(self, placement: Placement) -> None:
        layout = self._task.layout(placement.variant, len(placement.balls))
        shared = _compiled(layout, self.image_width, self.image_height)
        if self._layout == layout:
            mujoco.mj_resetData(self._model, self._data)
            return
        self._layout = layout
        self._model = copy.copy(shared)  # colours are set per episode; other worlds share the compiled one
        self._data = mujoco.MjData(self._model)
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers.clear()
        name_to_id = functools.partial(mujoco.mj_name2id, self._model)
        self._bodies = {
            name: name_to_id(mujoco.mjtObj.mjOBJ_BODY, name)
            for name in [f"object_{i}" for i in range(layout.objects)]
            + [f"goal_{i}" for i in range(layout.goals)]
            + [f"ball_{i}" for i in range(layout.balls)]
        }
        gain, damping = self._model.actuator_gainprm[:7, 0], -self._model.actuator_biasprm[:7, 2]
        self._feed_forward = damping / gain * droid.CONTROL_HZ

    def _arrange(self, placement: Placement, joints: Array) -> None:
        data, model = self._data, self._model
        data.qpos[:7], data.qpos[7:9] = joints, droid.FINGER_TRAVEL
        data.ctrl[:7], data.ctrl[7] = joints, 255.0
        for i, (x, y, yaw) in enumerate(placement.objects):
            assert self._task.object_box is not None
            self._put(f"object_{i}", (x, y, self._task.object_box.height), yaw)
            model.geom_rgba[model.geom(f"object_{i}").id] = scene.OBJECT_COLORS[placement.object_colors[i]]
        for i, (x, y, yaw) in enumerate(placement.goals):
            self._put(f"goal_{i}", (x, y, self._task.goal_box.height if self._task.goal_box else 0.001), yaw)
            model.geom_rgba[model.geom(f"goal_{i}").id] = scene.GOAL_COLORS[placement.goal_colors[i]]
        for i, (x, y) in enumerate(placement.balls):
            self._put(f"ball_{i}", (x, y, scene.BALL_RADIUS), 0.0)
        mujoco.mj_forward(model, data)

    def _put(self, name: str, position: tuple[float, float, float], yaw: float) -> None:
        body = self._bodies[name]
        mocap = self._model.body_mocapid[body]
        if mocap >= 0:
            self._data.mocap_pos[mocap] = position
            return
        address = self._model.jnt_qposadr[self._model.body_jntadr[body]]
        self._data.qpos[address : address + 7] = (*position, np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2))

    def _targets(self, body: Array) -> Array:
        """Joint targets (7,) of one action without its gripper, at most one DROID step from the last ones."""
        last = self.commanded_joints
        space = self.action_space_name
        if space == "joint_velocity":
            joints = last + body / max(1.0, float(np.abs(body).max())) * droid.MAX_JOINT_DELTA
        elif space == "joint_position":
            joints = body
        else:
            previous = self.commanded_pose[:6]
            pose = (
                droid.move_pose(previous, body) if space == "cartesian_velocity" else droid.limit_pose(body, previous)
            )
            joints = droid.inverse_kinematics(raise_above_table(pose), last, iterations=_IK_STEPS)
        delta = joints - last
        delta /= max(1.0, float(np.abs(delta).max()) / droid.MAX_JOINT_DELTA)
        return np.clip(last + delta, self._lower, self._upper)

    def _drive(self, before: Array, after: Array, gripper: float) -> None:
        model, data = self._model, self._data
        data.ctrl[7] = 255.0 * (1.0 - gripper)
        move = after - before
        lead = self._feed_forward * move
        for i in range(scene.SUBSTEPS):
            data.ctrl[:7] = before + move * ((i + 1) / scene.SUBSTEPS) + lead
            mujoco.mj_step(model, data)
        mujoco.mj_kinematics(model, data)

    # -- what is seen and what is true --------------------------------------------------------------------------------

    def _observe(self) -> Observation:
        joints = self._data.qpos[:7].copy()
        if self._cameras and (self.step_count % self.image_stride == 0 or not self._images):
            self._images = self.render_cameras()
        return {
            **{camera: image.copy() for camera, image in self._images.items()},
            "joint_position": joints,
            "cartesian_position": droid.forward_kinematics(joints),
            "gripper_position": np.array([self.gripper]),
        }

    @property
    def measured_pose(self) -> Array:
        """The measured flange pose (6,), as in the observation."""
        return droid.forward_kinematics(self._data.qpos[:7])

    @property
    def gripper(self) -> float:
        """The gripper's position, 0 open .. 1 closed."""
        return float(np.clip(1.0 - self._data.qpos[7:9].sum() / (2 * droid.FINGER_TRAVEL), 0.0, 1.0))

    def render_cameras(self) -> dict[str, NDArray[np.uint8]]:
        """All three cameras now, uint8 (H, W, 3). The renderer belongs to the thread that calls first."""
        if 0 not in self._renderers:
            self._renderers[0] = mujoco.Renderer(self._model, self.image_height, self.image_width)
        renderer = self._renderers[0]
        images = {}
        for camera in droid.CAMERAS:
            renderer.update_scene(self._data, camera)
            images[camera] = renderer.render()
        return images

    def render(self) -> NDArray[np.uint8]:
        """The three cameras side by side, uint8 (H, 3 W, 3)."""
        return np.hstack(list(self.render_cameras().values()))

    def table_state(self) -> TableState:
        """Ground truth of this step: for rewards, experts and tests, never for a policy."""
        names = [name for name in self._bodies if not name.startswith("goal")]
        ids = [self._bodies[name] for name in names]
        speeds = np.linalg.norm(self._data.cvel[ids], axis=1)
        return TableState(
            objects=self._data.xpos[ids].copy(),
            goal=self._data.xpos[self._bodies["goal_0"]].copy(),
            target=0,
            speed=float(speeds.max() if self._task.balls else speeds[0]),
            gripper=self.gripper,
        )

    def object_poses(self) -> NDArray[np.float64]:
        """Where all that can be moved is (n, 5): x, y, z of its middle in m, yaw in rad, half of its width in m; as a
        world model may be told when it is trained, never a policy.
        """
        movable = [name for name in self._bodies if self._model.body_dofnum[self._bodies[name]]]
        ids = [self._bodies[name] for name in movable]
        turn = self._data.xmat[ids]
        half = [self._model.geom_size[self._model.body_geomadr[i], 0] for i in ids]
        return np.column_stack([self._data.xpos[ids], np.arctan2(turn[:, 3], turn[:, 0]), half])

    def camera_calibration(self) -> dict[str, dict[str, Any]]:
        """Each camera: `position` (3,) m and `rotation` (3, 3) in the frame `parent` (base, flange), and `fovy_deg`.

        Rotation columns are MuJoCo's camera axes: x right, y up, the camera looks along -z.
        """
        return {camera: dict(facts) for camera, facts in _calibration().items()}

    def camera_info(self, camera: str) -> NDArray[np.float64]:
        """The pinhole matrix K (3, 3) in pixels of a camera at this world's image size.

        Raises:
            UnknownNameError: no such camera.
        """
        if camera not in droid.CAMERAS:
            raise UnknownNameError("camera", camera, droid.CAMERAS)
        fovy = _calibration()[camera]["fovy_deg"]
        focal = self.image_height / 2 / np.tan(np.deg2rad(fovy) / 2)
        return np.array([[focal, 0.0, self.image_width / 2], [0.0, focal, self.image_height / 2], [0.0, 0.0, 1.0]])

    def close(self) -> None:
        """Frees the renderer (in the thread that rendered)."""
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers.clear()


def raise_above_table(pose: Array) -> Array:
    """A flange pose (6,) whose fingertips stay at least `FLOOR` above the table."""
    z_axis = droid.euler_to_matrix(pose[3:6])[:, 2]
    tip = pose[2] + scene.TCP_OFFSET * z_axis[2]
    if tip >= FLOOR:
        return pose
    raised = np.array(pose, float)
    raised[2] += FLOOR - tip
    return raised
