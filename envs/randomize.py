"""What may look or behave differently in every episode: lights, colours, textures, cameras, clutter, latency, friction?

Each axis has a range and a strength: 0 is off, 1 is the range below, 0.5 half of it. `randomize={"lights": 1.0}` turns
on one axis, `randomize="all"` every one; evaluation sweeps the strength to draw a robustness curve. An episode's draw
follows its seed, comes after the start positions (which stay the plain task's), and is in `info["randomization"]`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import mujoco
import numpy as np

from envs.meshes import Floats
from envs.scene import Scene
from envs.worlds import DISTRACTORS, TEXTURES

# Ranges at strength 1.
LIGHT_FACTOR = (0.4, 1.5)  # on each light's brightness
LIGHT_TILT_RAD = 0.6  # of the key light's direction
COLOR_JITTER = 0.25  # on each channel of table, floor, furniture and robot
CAMERA_SHIFT_M = 0.04
CAMERA_TURN_RAD = 0.06
LATENCY_S = 0.15  # delay of the action: up to
FRICTION_FACTOR = (0.6, 1.5)  # on sliding friction

AXES = {
    "lights": f"brightness {LIGHT_FACTOR[0]} to {LIGHT_FACTOR[1]}, direction of the key light {LIGHT_TILT_RAD} rad",
    "colors": f"every surface but the object's, {COLOR_JITTER} a channel",
    "textures": f"table, floor and furniture: one of {TEXTURES} patterns or none",
    "cameras": f"shift {CAMERA_SHIFT_M} m, turn {CAMERA_TURN_RAD} rad",
    "distractors": f"up to {DISTRACTORS} things without contact",
    "latency": f"actions up to {LATENCY_S} s late",
    "friction": f"sliding friction {FRICTION_FACTOR[0]} to {FRICTION_FACTOR[1]}",
}
_OBJECTS = ("cube", "handle", "prop")  # keep their colour: it says what they are
_ON_FLOOR = 0.15  # share of distractors that lie on the floor


@dataclass(frozen=True, kw_only=True)
class Randomization:
    """Strength of every axis: 0 off, 1 the whole range."""

    lights: float = 0.0
    colors: float = 0.0
    textures: float = 0.0  # chance that a surface has a pattern
    cameras: float = 0.0
    distractors: float = 0.0
    latency: float = 0.0
    friction: float = 0.0

    def __post_init__(self) -> None:
        for name, strength in asdict(self).items():
            if not 0.0 <= strength <= 3.0:
                raise ValueError(f"randomize: the strength of {name} must be in 0..3 (1 is the range), got {strength}")

    def as_dict(self) -> dict[str, float]:
        """Return the axes that are on."""
        return {name: float(strength) for name, strength in asdict(self).items() if strength}


def parse_randomization(value: Any) -> Randomization | None:
    """Read the environment's option: None, "all", an axis, a list of axes, or axis -> strength; ValueError else."""
    if value is None or value is False:
        return None
    if isinstance(value, Randomization):
        return value
    if isinstance(value, str):
        value = list(AXES) if value == "all" else [value]
    strengths = dict(value) if isinstance(value, Mapping) else dict.fromkeys(value, 1.0)
    if set(strengths) == {"all"}:
        strengths = dict.fromkeys(AXES, strengths["all"])
    for name in strengths:
        if name not in AXES:
            near = difflib.get_close_matches(str(name), AXES, n=1)
            hint = f", did you mean {near[0]}?" if near else ""
            raise ValueError(f"randomize knows no axis {name!r}{hint}; the axes are {', '.join(AXES)}, or 'all'")
    return Randomization(**{name: float(strength) for name, strength in strengths.items()})


@dataclass(frozen=True)
class Draw:
    """What an episode drew, as numbers for `info`, and the delay that the environment has to apply."""

    latency_s: float = 0.0
    numbers: dict[str, Any] = field(default_factory=dict)


class Randomizer:
    """Writes one episode's draw into an environment's own model, starting from the plain one each time."""

    def __init__(self, axes: Randomization, scene: Scene, plain: Any) -> None:
        """`scene.model` is the environment's own copy; `plain` is the shared model, which is never written."""
        self._axes, self._scene, self._plain = axes, scene, plain
        model = plain
        names = [model.geom(i).name for i in range(model.ngeom)]
        self._surfaces = [i for i, name in enumerate(names) if name.startswith(("table", "floor", "cabinet", "drawer"))]
        drawn = np.flatnonzero(model.geom_group == 1)
        self._colored = [i for i in drawn if not names[i].startswith((*_OBJECTS, "distractor"))]
        self._distractors = [scene.bodies[f"distractor{i}"] for i in range(DISTRACTORS)]
        self._materials = [model.material(f"pattern{i}").id for i in range(TEXTURES)]
        colliding = (model.geom_contype | model.geom_conaffinity) != 0
        self._touching = np.flatnonzero(colliding)

    def draw(self, data: Any, random: np.random.Generator) -> Draw:
        """Change the model for this episode; the number of random values drawn is always the same."""
        axes = self._axes
        numbers: dict[str, Any] = {}
        numbers["lights"] = self._lights(axes.lights, random)
        self._colors(axes.colors, random)
        self._textures(axes.textures, random)
        self._cameras(axes.cameras, random)
        numbers["distractors"] = self._clutter(axes.distractors, data, random)
        latency_s = axes.latency * LATENCY_S * float(random.uniform())
        numbers["latency_s"] = latency_s
        numbers["friction"] = self._friction(axes.friction, random)
        return Draw(latency_s, numbers)

    def _lights(self, strength: float, random: np.random.Generator) -> list[float]:
        model, plain = self._scene.model, self._plain
        factors = [_factor(LIGHT_FACTOR, strength, random) for _ in range(model.nlight)]
        tilt = strength * LIGHT_TILT_RAD * random.uniform(-1, 1, 3)
        for index, factor in enumerate(factors):
            model.light_diffuse[index] = plain.light_diffuse[index] * factor
            model.light_ambient[index] = plain.light_ambient[index] * factor
        model.light_dir[0] = _turned(plain.light_dir[0], tilt)
        return factors

    def _colors(self, strength: float, random: np.random.Generator) -> None:
        model, plain = self._scene.model, self._plain
        shifts = random.uniform(-1, 1, (len(self._colored), 3)) * strength * COLOR_JITTER
        model.geom_rgba[self._colored, :3] = np.clip(plain.geom_rgba[self._colored, :3] + shifts, 0.0, 1.0)

    def _textures(self, strength: float, random: np.random.Generator) -> None:
        model, plain = self._scene.model, self._plain
        chances, picks = random.uniform(size=len(self._surfaces)), random.integers(TEXTURES, size=len(self._surfaces))
        for surface, chance, pick in zip(self._surfaces, chances, picks, strict=True):
            patterned = chance < strength * 0.8
            model.geom_matid[surface] = self._materials[pick] if patterned else plain.geom_matid[surface]

    def _cameras(self, strength: float, random: np.random.Generator) -> None:
        model, plain = self._scene.model, self._plain
        for camera in range(model.ncam):
            # The wrist camera sits 10 cm from what it looks at: a tenth of the shift moves its picture as much.
            near = 0.1 if plain.cam(camera).name == "wrist" else 1.0
            shift, turn = random.uniform(-1, 1, 3), random.uniform(-1, 1, 3)
            model.cam_pos[camera] = plain.cam_pos[camera] + strength * near * CAMERA_SHIFT_M * shift
            model.cam_quat[camera] = _quaternion_turned(plain.cam_quat[camera], strength * CAMERA_TURN_RAD * turn)

    def _clutter(self, strength: float, data: Any, random: np.random.Generator) -> int:
        """Put some things on the table or the cabinet, and some on the floor; the others stay below it."""
        model, scene = self._scene.model, self._scene
        count = int(random.integers(0, DISTRACTORS + 1) * min(1.0, strength))
        for index, body in enumerate(self._distractors):
            size = random.uniform(0.015, 0.045, 3)
            color, place, floor = random.uniform(0.05, 0.95, 3), random.uniform(-1, 1, 2), random.uniform()
            yaw = random.uniform(-np.pi, np.pi)
            geom = int(model.body_geomadr[body])
            model.geom_size[geom] = size
            model.geom_rbound[geom] = float(np.linalg.norm(size)) + float(size.max())
            model.geom_rgba[geom, :3] = color
            mocap = int(model.body_mocapid[body])
            position = np.array([index, 0.0, -2.0])
            if index < count:
                position = _place(scene, data, place, floor < _ON_FLOOR)
                position[2] += _half_height(int(model.geom_type[geom]), size)
            data.mocap_pos[mocap] = position
            data.mocap_quat[mocap] = (np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2))
        return count

    def _friction(self, strength: float, random: np.random.Generator) -> float:
        factor = _factor(FRICTION_FACTOR, strength, random)
        model, touching = self._scene.model, self._touching
        model.geom_friction[touching, 0] = self._plain.geom_friction[touching, 0] * factor
        return factor


def _place(scene: Scene, data: Any, place: Floats, floor: bool) -> Floats:
    """Return where a distractor stands: on the table beside the cube, on the cabinet, or on the floor."""
    if "cube" in scene.bodies:
        if floor:
            return np.array([-0.3 + 0.3 * place[0], 0.9 * place[1], 0.0])
        point = np.array([0.5 + 0.27 * place[0], 0.45 * place[1], 0.4])
        cube = data.qpos[scene.joints["cube"] :][:2]
        offset = point[:2] - cube
        distance = float(np.hypot(*offset))
        if distance < 0.11:  # push it aside, out of the fingers' way
            point[:2] = cube + (offset / max(distance, 1e-6)) * 0.11
        return point
    if floor:
        return np.array([0.9 + 0.3 * place[0], 0.45 + 0.3 * place[1], 0.0])
    cabinet = data.mocap_pos[int(scene.model.body_mocapid[scene.bodies["cabinet"]])]
    top: Floats = cabinet + np.array([-0.05 + 0.2 * place[0], 0.33 * place[1], 0.402])
    return top


def _factor(bounds: tuple[float, float], strength: float, random: np.random.Generator) -> float:
    """Draw a factor whose logarithm is uniform between the bounds', both shrunk towards 1 by the strength."""
    low, high = np.log(bounds)
    return float(np.exp(strength * random.uniform(low, high)))


def _turned(vector: Floats, turn_rad: Floats) -> Floats:
    quaternion, turned = np.zeros(4), np.zeros(3)
    angle = float(np.linalg.norm(turn_rad))
    mujoco.mju_axisAngle2Quat(quaternion, turn_rad / max(angle, 1e-9), angle)
    mujoco.mju_rotVecQuat(turned, vector, quaternion)
    return turned


def _quaternion_turned(quaternion: Floats, turn_rad: Floats) -> Floats:
    turn, turned = np.zeros(4), np.zeros(4)
    angle = float(np.linalg.norm(turn_rad))
    mujoco.mju_axisAngle2Quat(turn, turn_rad / max(angle, 1e-9), angle)
    mujoco.mju_mulQuat(turned, quaternion, turn)
    return turned


def _half_height(kind: int, size: Floats) -> float:
    """Return how high above its ground the middle of a standing thing is, from MuJoCo's sizes of its kind."""
    shapes = mujoco.mjtGeom
    if kind == shapes.mjGEOM_SPHERE:
        return float(size[0])
    if kind == shapes.mjGEOM_CYLINDER:
        return float(size[1])
    return float(size[0] + size[1]) if kind == shapes.mjGEOM_CAPSULE else float(size[2])
