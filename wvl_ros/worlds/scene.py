"""The tabletop's MuJoCo scene: FR3 with hand, table, coloured objects and goals, two exterior and one wrist camera.

The arm's model, meshes and URDF come from the installed `franky-sim` wheel (Apache-2.0). The collision meshes (2,800
faces) are drawn instead of the visual ones (242,000 faces): a hundred times faster on a CPU, and still plainly an FR3.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import mujoco
import numpy as np

from wvl_ros.errors import ConfigError
from wvl_ros.worlds.droid import CAMERAS, CONTROL_HZ

SUBSTEPS = 16  # physics at 240 Hz
TCP_OFFSET = 0.1034  # m from the flange to the fingertips, along the flange's z
HAND_YAW = -np.pi / 4  # the hand's turn about the flange's z

# Softer than the wheel's kp 4500 / kv 450: with the implicit integrator those make every grasp slide by 20 mm a lift.
_STIFFNESS = (1000, 1000, 800, 800, 300, 250, 150)
_DAMPING = (60, 60, 50, 50, 20, 16, 10)
_ARM_COLOR = (0.92, 0.92, 0.94, 1.0)
_CAMERA_TARGET = (0.47, 0.0, 0.135)
_EXTERIOR = {CAMERAS[0]: (0.80, 0.74, 0.60), CAMERAS[1]: (0.80, -0.74, 0.60)}
_EXTERIOR_FOVY = 33.0
_WRIST_FOVY = 80.0
_HIDDEN = (0.0, 0.0, 0.0, 1.0)

OBJECT_COLORS = {"red": (0.85, 0.10, 0.10, 1.0), "blue": (0.10, 0.25, 0.88, 1.0)}
GOAL_COLORS = {"yellow": (0.95, 0.85, 0.10, 1.0), "green": (0.15, 0.70, 0.25, 1.0)}
BALL_COLOR = (0.96, 0.96, 0.96, 1.0)
BALL_RADIUS = 0.012


@dataclass(frozen=True)
class Box:
    """A free box: half its size in m, mass in kg, sliding friction."""

    half_size: tuple[float, float, float]
    mass: float
    friction: float

    @property
    def height(self) -> float:
        """Height of its centre above the table when it lies flat, in m."""
        return self.half_size[2]


@dataclass(frozen=True)
class Layout:
    """What lies on the table: so many alike boxes, alike goals (flat disks of a radius, or boxes) and balls."""

    objects: int = 0
    goals: int = 1
    balls: int = 0
    object_box: Box | None = None
    goal_radius: float | None = None
    goal_box: Box | None = None


def assets_folder() -> Path:
    """The folder of the FR3's MJCF, URDF and meshes inside the installed franky-sim wheel.

    Raises:
        ConfigError: franky-sim is not installed.
    """
    spec = importlib.util.find_spec("franky_sim")
    if spec is None or spec.origin is None:
        raise ConfigError("The tabletop needs the FR3 model of franky-sim: pip install --no-deps franky-sim")
    return Path(spec.origin).parent / "assets"


def build(layout: Layout, width: int = 640, height: int = 480) -> mujoco.MjModel:
    """Compiles the scene for a layout; images up to `width` x `height` can be rendered from it."""
    folder = assets_folder()
    spec = mujoco.MjSpec.from_file(str(folder / "fr3.xml"))
    spec.meshdir = str(folder / "meshes")
    _simplify_arm(spec)
    _soften_servos(spec)
    _add_cameras(spec)
    _add_surroundings(spec, width, height)
    _add_layout(spec, layout)
    return spec.compile()


def _simplify_arm(spec: mujoco.MjSpec) -> None:
    for key in list(spec.keys):
        spec.delete(key)
    pads_seen: set[str] = set()
    for geom in list(spec.geoms):
        body = geom.parent.name
        kind = geom.classname.name
        if kind == "visual":
            spec.delete(geom)
        elif kind.startswith("fingertip_pad"):
            # One flat pad a finger: the wheel's five small boxes give sideways normals and halve the speed.
            if body in pads_seen:
                spec.delete(geom)
                continue
            pads_seen.add(body)
            geom.size = (0.0085, 0.0045, 0.0085)
            geom.pos = (0.0, 0.0045, 0.0445)
            geom.friction = (1.5, 0.02, 0.001)
            geom.condim = 4
            geom.rgba = (0.15, 0.15, 0.15, 1.0)
        else:
            geom.group = 2
            geom.rgba = _ARM_COLOR
            if body.endswith("finger"):
                geom.rgba = (0.3, 0.3, 0.32, 1.0)
            if body == "hand":
                geom.rgba = (0.75, 0.75, 0.78, 1.0)
            else:  # the pads collide for the fingers; the links never touch anything in these tasks
                geom.contype = geom.conaffinity = 0
    used = {geom.meshname for geom in spec.geoms}
    for mesh in list(spec.meshes):
        if mesh.name not in used:
            spec.delete(mesh)
    for body in spec.bodies:
        if body.name.startswith(("fr3_link", "hand", "left_finger", "right_finger")):
            body.gravcomp = 1.0  # as the real arm does below its interface
    for joint in spec.joints:
        if joint.name.startswith("finger"):  # they inherit the arm's armature and friction: far too heavy
            joint.armature, joint.frictionloss = 0.1, 0.0
            joint.damping = np.array([2.0, 0.0, 0.0])


def _soften_servos(spec: mujoco.MjSpec) -> None:
    spec.option.timestep = 1.0 / (CONTROL_HZ * SUBSTEPS)
    spec.option.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
    spec.option.impratio = 10.0
    for actuator in spec.actuators:
        name = actuator.target
        if name.startswith("fr3_joint"):
            i = int(name[-1]) - 1
            actuator.gainprm[0] = _STIFFNESS[i]
            actuator.biasprm[1:3] = (-_STIFFNESS[i], -_DAMPING[i])
        else:
            actuator.gainprm[0] = 1500 * 0.04 / 255
            actuator.biasprm[:3] = (0.0, -1500.0, -60.0)
            actuator.forcerange = (-60.0, 60.0)


def _add_cameras(spec: mujoco.MjSpec) -> None:
    for name, position in _EXTERIOR.items():
        back = np.subtract(position, _CAMERA_TARGET)
        back /= np.linalg.norm(back)
        right = np.cross((0.0, 0.0, 1.0), back)
        right /= np.linalg.norm(right)
        _add_camera(spec.worldbody, name, position, right, np.cross(back, right), _EXTERIOR_FOVY)
    hand = spec.body("hand")
    up = np.array((0.90, 0.0, 0.43)) / np.linalg.norm((0.90, 0.0, 0.43))
    _add_camera(hand, CAMERAS[2], (0.07, 0.0, 0.01), np.array((0.0, 1.0, 0.0)), up, _WRIST_FOVY)


def _add_camera(
    body: mujoco.MjsBody, name: str, position: tuple[float, ...], x: np.ndarray, y: np.ndarray, fovy: float
) -> None:
    camera = body.add_camera()
    camera.name, camera.pos, camera.fovy = name, position, fovy
    quaternion = np.empty(4)
    mujoco.mju_mat2Quat(quaternion, np.column_stack([x, y, np.cross(x, y)]).flatten())
    camera.quat = quaternion


def _add_surroundings(spec: mujoco.MjSpec, width: int, height: int) -> None:
    visual = spec.visual
    visual.quality.offsamples = 0
    visual.quality.shadowsize = 0
    getattr(visual, "global").offwidth, getattr(visual, "global").offheight = width, height
    visual.headlight.diffuse, visual.headlight.ambient, visual.headlight.specular = (0.45,) * 3, (0.35,) * 3, (0.0,) * 3
    visual.map.znear, visual.map.zfar = 0.01, 20.0
    sky = spec.add_texture()
    sky.name, sky.type, sky.builtin = "sky", mujoco.mjtTexture.mjTEXTURE_SKYBOX, mujoco.mjtBuiltin.mjBUILTIN_FLAT
    sky.rgb1 = sky.rgb2 = (0.75, 0.78, 0.80)
    sky.width = sky.height = 16
    world = spec.worldbody
    light = world.add_light()
    light.pos, light.dir = (0.6, -0.4, 1.8), (-0.1, 0.2, -1.0)
    light.type, light.castshadow = mujoco.mjtLightType.mjLIGHT_DIRECTIONAL, False
    light.diffuse, light.specular = (0.5,) * 3, (0.1,) * 3
    floor = world.add_geom()
    floor.type, floor.size, floor.pos, floor.rgba = (
        mujoco.mjtGeom.mjGEOM_PLANE,
        (3, 3, 0.1),
        (0, 0, -0.4),
        (0.45, 0.47, 0.5, 1),
    )
    table = world.add_geom()
    table.name, table.type = "table", mujoco.mjtGeom.mjGEOM_BOX
    table.size, table.pos, table.rgba = (0.45, 0.6, 0.2), (0.4, 0.0, -0.2), (0.62, 0.48, 0.34, 1)
    # Its own friction wins over the rubber pads': with theirs, fingers that touch the table jam and stay.
    table.friction, table.condim, table.priority = (0.5, 0.01, 0.001), 4, 1


def _add_layout(spec: mujoco.MjSpec, layout: Layout) -> None:
    world = spec.worldbody
    for i in range(layout.objects):
        assert layout.object_box is not None
        _add_box(world, f"object_{i}", layout.object_box)
    for i in range(layout.goals):
        if layout.goal_box is not None:
            _add_box(world, f"goal_{i}", layout.goal_box)
        else:
            body = world.add_body()
            body.name, body.mocap = f"goal_{i}", True
            disk = body.add_geom()
            disk.name, disk.type, disk.rgba = f"goal_{i}", mujoco.mjtGeom.mjGEOM_CYLINDER, _HIDDEN
            disk.size = (layout.goal_radius or 0.05, 0.001, 0.0)
            disk.contype = disk.conaffinity = 0
    for i in range(layout.balls):
        body = world.add_body()
        body.name, body.pos = f"ball_{i}", (0.4, 0.03 * i, BALL_RADIUS)
        body.add_freejoint()
        ball = body.add_geom()
        ball.type, ball.size, ball.rgba, ball.mass = mujoco.mjtGeom.mjGEOM_SPHERE, (BALL_RADIUS, 0, 0), BALL_COLOR, 0.01
        ball.friction, ball.condim, ball.priority = (0.6, 0.005, 0.004), 6, 1


def _add_box(world: mujoco.MjsBody, name: str, box: Box) -> None:
    body = world.add_body()
    body.name, body.pos = name, (0.5, 0.0, box.height)
    body.add_freejoint()
    geom = body.add_geom()
    geom.name, geom.type, geom.size, geom.mass = name, mujoco.mjtGeom.mjGEOM_BOX, box.half_size, box.mass
    geom.friction, geom.condim, geom.rgba = (box.friction, 0.01, 0.001), 4, _HIDDEN
