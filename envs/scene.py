"""What is in the simulated world, and how is it composed, cached and compiled?

robosuite's Panda and PandaGripper give kinematics, inertias and meshes; around them comes a lean world: a table, a
cube, two cameras, position servos. The result is one self-contained MJCF text in the user's cache folder, so robosuite
is imported once per machine and version, not once per environment.
"""

from __future__ import annotations

import functools
import hashlib
import os
import subprocess
import sys
import tempfile
import types
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import numpy.typing as npt

from envs import meshes, specs
from envs.meshes import Floats

# PixMC FrankaPick geometry, metres, world frame: z up, the robot at x = 1 faces -x.
BASE_POSITION_M = (1.0, 0.0, 0.0)
TABLE_SIZE_M = (0.6, 1.0, 0.4)
TABLE_POSITION_M = (0.5, 0.0, 0.2)
CUBE_SIDE_M = 0.045
CUBE_COLOR = "0 0.447 0.741 1"

TRIANGLES = {"lean": 6_000, "full": 60_000}  # for the whole robot; robosuite ships 168 000
HULL_VERTICES = 64  # of a link's convex collision hull; robosuite's link 1 has 1588
ARM_ARMATURE_KGM2 = 0.1  # MuJoCo Menagerie's Panda; robosuite's 5 / (i + 1) is a stabiliser, not the motor
FINGER_FORCE_N = 20.0  # robosuite's PandaGripper
_ROBOT, _WORLD = 1, 2  # collision bits: the robot meets the world, never itself (PixMC's collision filter)


@dataclass(frozen=True)
class Scene:
    """A compiled model and the addresses that stepping needs. All environments of a process share it; never written."""

    model: Any  # mujoco.MjModel
    digest: str
    arm_links: npt.NDArray[np.bool_]  # (nbody,) PixMC's "link" bodies: the hand and the fingers may touch things
    hand_site: int
    hand_body: int
    finger_bodies: tuple[int, int]
    cube_body: int
    cube_qpos: int
    base_position_m: Floats
    base_rotation: Floats  # (3, 3) base frame to world


@functools.lru_cache(maxsize=8)
def load_scene(preset: str, quality: str) -> Scene:
    """Compile the scene of a preset; the same object for the same arguments within a process."""
    xml = _cached_xml(preset, quality)
    model = mujoco.MjModel.from_xml_string(xml)
    rotation = np.zeros(9)
    mujoco.mju_quat2Mat(rotation, model.body("base").quat)
    links = [model.body(i).name.startswith("link") for i in range(model.nbody)]
    return Scene(
        model=model,
        digest=_digest(xml),
        arm_links=np.array(links),
        hand_site=model.site("grasp").id,
        hand_body=model.body("right_hand").id,
        finger_bodies=(model.body("leftfinger").id, model.body("rightfinger").id),
        cube_body=model.body("cube").id,
        cube_qpos=int(model.joint("cube").qposadr[0]),
        base_position_m=model.body("base").pos.copy(),
        base_rotation=rotation.reshape(3, 3),
    )


def cache_folder() -> Path:
    """Return where composed scenes are kept: `$XDG_CACHE_HOME/toto_robot/scenes`, by default under `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "toto_robot" / "scenes"


def _digest(xml: str) -> str:
    """Hash everything but the drawn meshes' coordinates, whose last digit may depend on the machine that made them."""
    root = ElementTree.fromstring(xml)
    for mesh in root.iter("mesh"):
        if mesh.get("name", "").startswith("visual"):
            mesh.attrib.pop("vertex"), mesh.attrib.pop("face")
    return hashlib.sha256(ElementTree.tostring(root)).hexdigest()[:16]


def _cached_xml(preset: str, quality: str) -> str:
    """Return the composed scene, from the cache when the same sources and versions made it before."""
    sources = [Path(module.__file__ or "").read_bytes() for module in (meshes, specs, sys.modules[__name__])]
    versions = f"{metadata.version('robosuite')} {mujoco.__version__} {preset} {quality}"
    key = hashlib.sha256(b"\0".join([*sources, versions.encode()])).hexdigest()[:20]
    path = cache_folder() / f"franka_{preset}_{quality}_{key}.xml"
    if path.exists():
        return path.read_text()
    xml = _compose_apart(preset, quality)
    _write_atomically(path, xml)
    return xml


def _compose_apart(preset: str, quality: str) -> str:
    """Compose in another process: robosuite's import changes MUJOCO_GL and loads 300 MB that stepping never needs."""
    root = str(Path(__file__).resolve().parent.parent)
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])))
    command = [sys.executable, "-c", "import sys; from envs import scene; scene.print_scene(*sys.argv[1:])"]
    done = subprocess.run([*command, preset, quality], env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"composing the scene from robosuite's Panda failed:\n{done.stderr.strip()[-2000:]}")
    return done.stdout


def print_scene(preset: str, quality: str) -> None:
    """Print a scene's MJCF text."""
    sys.stdout.write(compose(specs.PRESETS[preset], quality))


def _write_atomically(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            file.write(text)
        os.replace(file.name, path)
    except OSError as error:
        warnings.warn(f"cannot cache the scene in {path.parent} ({error}); each process builds it anew", stacklevel=2)


def compose(preset: specs.Preset, quality: str) -> str:
    """Return the MJCF text of the robot, the table, the cube, the cameras and the servos."""
    source = _robosuite_panda()
    original = mujoco.MjModel.from_xml_string(ElementTree.tostring(source, encoding="unicode"))
    robot = source.find("worldbody/body")
    assert robot is not None
    # Shadows and antialiasing cost by the software renderer ten times what the lean picture does.
    effects = {"lean": ("0", "0", "false"), "full": ("4096", "4", "true")}[quality]
    world = _WORLD_XML.format(
        timestep=preset.timestep_s,
        cube=CUBE_SIDE_M / 2,
        color=CUBE_COLOR,
        **dict(zip(("shadow", "samples", "castshadow"), effects, strict=True)),
    )
    root = ElementTree.fromstring(world)
    assets, worldbody = root.find("asset"), root.find("worldbody")
    assert assets is not None and worldbody is not None
    drawn = _drawn_meshes(original, TRIANGLES[quality])
    hulls = _collision_hulls(original)
    for body in list(robot.iter("body")):
        _rebuild_geoms(body, assets, drawn, hulls)
    for element in robot.iter():
        _strip_prefixes(element)
    _refit_joints(robot)
    _add_hand_parts(robot)
    worldbody.insert(0, robot)  # first, so that the robot's joints lead qpos and qvel
    _add_servos(root, preset)
    return ElementTree.tostring(root, encoding="unicode")


# --- robosuite --------------------------------------------------------------------------------------------------------


def _robosuite_panda() -> ElementTree.Element:
    """Return robosuite's world with a Panda and its gripper at PixMC's base pose."""
    quiet = types.ModuleType("robosuite.macros_private")  # without it robosuite prints warnings when imported
    quiet.CONSOLE_LOGGING_LEVEL = "ERROR"  # type: ignore[attr-defined]
    sys.modules.setdefault("robosuite.macros_private", quiet)
    from robosuite.models import MujocoWorldBase
    from robosuite.models.grippers import PandaGripper
    from robosuite.models.robots import Panda

    robot = Panda(idn=0)
    robot.add_gripper(PandaGripper(idn="0_right"), robot.eef_name["right"])
    robot.set_base_xpos(np.array(BASE_POSITION_M))
    robot.set_base_ori(np.array([0.0, 0.0, np.pi]))
    world = MujocoWorldBase()
    world.merge(robot)
    for mesh in world.root.iter("mesh"):
        mesh.set("maxhullvert", str(HULL_VERTICES))
    return world.root


def _strip_prefixes(element: ElementTree.Element) -> None:
    for key, value in element.attrib.items():
        for prefix in ("robot0_", "gripper0_right_"):
            if value.startswith(prefix):
                element.set(key, value.removeprefix(prefix))


def _geom_mesh(model: Any, geom: int) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Return a mesh geom's vertices in its body's frame, and its faces."""
    mesh = int(model.geom_dataid[geom])
    first, count = int(model.mesh_vertadr[mesh]), int(model.mesh_vertnum[mesh])
    first_face, faces = int(model.mesh_faceadr[mesh]), int(model.mesh_facenum[mesh])
    rotation = np.zeros(9)
    mujoco.mju_quat2Mat(rotation, model.geom_quat[geom])
    vertices = model.mesh_vert[first : first + count].astype(np.float64) @ rotation.reshape(3, 3).T
    return vertices + model.geom_pos[geom], model.mesh_face[first_face : first_face + faces].astype(np.int64)


_Drawn = dict[str, list[tuple[str, Floats, npt.NDArray[np.int64]]]]


def _drawn_meshes(model: Any, triangles: int) -> _Drawn:
    """Return per body its visual meshes, one a colour, decimated to a share of `triangles` that grows with size."""
    parts: dict[tuple[str, str], list[tuple[Floats, npt.NDArray[np.int64]]]] = {}
    for geom in range(model.ngeom):
        if model.geom_group[geom] != 1 or model.geom_type[geom] != mujoco.mjtGeom.mjGEOM_MESH:
            continue
        material = int(model.geom_matid[geom])
        rgba = model.mat_rgba[material] if material >= 0 else model.geom_rgba[geom]
        color = " ".join(f"{value:.2f}" for value in rgba)
        parts.setdefault((model.body(model.geom_bodyid[geom]).name, color), []).append(_geom_mesh(model, geom))
    merged = {key: _merge(meshes_) for key, meshes_ in parts.items()}
    weight = {key: _weight(key[0], *mesh) for key, mesh in merged.items()}
    drawn: _Drawn = {}
    for (body, color), (vertices, faces) in merged.items():
        budget = max(12, int(triangles * weight[body, color] / sum(weight.values())))
        drawn.setdefault(body, []).append((color, *meshes.decimate(vertices, faces, budget)))
    return drawn


def _weight(body: str, vertices: Floats, faces: npt.NDArray[np.int64]) -> float:
    """Return a mesh's claim on triangles: the root of its area, four times that for what the wrist camera sees."""
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    area = 0.5 * float(np.linalg.norm(np.cross(b - a, c - a), axis=1).sum())
    return float(np.sqrt(area)) * (4.0 if body.startswith("gripper") else 1.0)


def _merge(parts: Iterable[tuple[Floats, npt.NDArray[np.int64]]]) -> tuple[Floats, npt.NDArray[np.int64]]:
    vertices, faces, offset = [], [], 0
    for vertex, face in parts:
        vertices.append(vertex)
        faces.append(face + offset)
        offset += len(vertex)
    return np.concatenate(vertices), np.concatenate(faces)


def _collision_hulls(model: Any) -> dict[str, Floats]:
    """Return per collision mesh geom its convex hull's vertices, in the body's frame (MuJoCo collides hulls only)."""
    hulls = {}
    for geom in range(model.ngeom):
        mesh = int(model.geom_dataid[geom])
        if model.geom_group[geom] != 0 or mesh < 0:
            continue
        graph = model.mesh_graph[model.mesh_graphadr[mesh] :]
        count = int(graph[0])
        vertices, _ = _geom_mesh(model, geom)
        hulls[model.geom(geom).name] = vertices[graph[2 + count : 2 + 2 * count]]
    return hulls


# --- lean robot -------------------------------------------------------------------------------------------------------


def _rebuild_geoms(
    body: ElementTree.Element, assets: ElementTree.Element, drawn: _Drawn, hulls: dict[str, Floats]
) -> None:
    """Replace a body's geoms by decimated drawn meshes, hull collision meshes and the gripper's pads."""
    name = body.get("name", "")
    for unwanted in [*body.findall("site"), *body.findall("camera")]:
        body.remove(unwanted)
    for geom in body.findall("geom"):
        body.remove(geom)
        if geom.get("group") != "0":  # robosuite: 0 collides, 1 is drawn
            continue
        kept = {"class": "collision"}
        kept |= {key: value for key, value in geom.attrib.items() if key in ("name", "friction", "solref", "condim")}
        if geom.get("type") == "box":
            kept |= {key: value for key, value in geom.attrib.items() if key in ("type", "size", "pos", "quat")}
        else:
            mesh = f"hull_{geom.attrib['name']}"
            _mesh_asset(assets, mesh, hulls[geom.attrib["name"]], None)
            kept |= {"type": "mesh", "mesh": mesh}
        ElementTree.SubElement(body, "geom", kept)
    for index, (color, vertices, faces) in enumerate(drawn.get(name, [])):
        mesh = f"visual_{name}_{index}"
        _mesh_asset(assets, mesh, vertices, faces)
        ElementTree.SubElement(body, "geom", {"class": "visual", "type": "mesh", "mesh": mesh, "rgba": color})


def _mesh_asset(
    assets: ElementTree.Element, name: str, vertices: Floats, faces: npt.NDArray[np.int64] | None
) -> None:
    # A tenth of a millimetre is enough to draw; hulls keep a hundredth.
    digits = 4 if faces is not None else 5
    asset = {"name": name, "vertex": " ".join(f"{value:.{digits}f}" for value in vertices.reshape(-1))}
    if faces is not None:
        asset |= {"face": " ".join(map(str, faces.reshape(-1))), "inertia": "shell"}
    ElementTree.SubElement(assets, "mesh", asset)


def _refit_joints(robot: ElementTree.Element) -> None:
    """Give joints the real arm's armature, no dry friction (nine constraint rows a step), and the robot no weight."""
    for body in robot.iter("body"):
        body.set("gravcomp", "1")
    for joint in robot.iter("joint"):
        joint.attrib.pop("frictionloss", None)
        if joint.get("type") != "slide":
            joint.set("armature", str(ARM_ARMATURE_KGM2))
        elif joint.attrib["name"] == "finger_joint2":  # robosuite's runs 0 .. -0.04; both fingers open upwards here
            joint.set("axis", "0 -1 0")
            joint.set("range", "0 0.04")


def _add_hand_parts(robot: ElementTree.Element) -> None:
    """Put the grasp point (robosuite's eef, PixMC's 4.5 cm along a finger) and PixMC's wrist camera on the hand."""
    hand = next(body for body in robot.iter("body") if body.get("name") == "right_hand")
    ElementTree.SubElement(hand, "site", {"name": "grasp", "pos": "0 0 0.0974", "group": "4"})
    # Looks along the fingers, image up = hand +x: the fingers come in from below, the grasped cube stays in view.
    camera = {"name": "wrist", "pos": "0.04 0 0.045", "xyaxes": "0 1 0 1 0 0", "fovy": "104.9"}
    ElementTree.SubElement(hand, "camera", camera)


def _add_servos(root: ElementTree.Element, preset: specs.Preset) -> None:
    actuators = ElementTree.SubElement(root, "actuator")
    for i in range(specs.ARM_JOINTS):
        torque = specs.JOINT_TORQUE_NM[i]
        servo = {"name": f"joint{i + 1}", "joint": f"joint{i + 1}", "forcerange": f"{-torque} {torque}"}
        servo |= {"kp": str(preset.servo_kp_nm_rad), "kv": str(preset.servo_kd_nms_rad)}
        ElementTree.SubElement(actuators, "position", servo)
    for i in (1, 2):
        name = f"finger_joint{i}"
        force = f"{-FINGER_FORCE_N} {FINGER_FORCE_N}"
        servo = {"name": name, "joint": name, "kp": "1000", "forcerange": force, "ctrlrange": "0 0.04"}
        ElementTree.SubElement(actuators, "position", servo)
    # The real hand drives both fingers from one motor.
    mimic = {"joint1": "finger_joint2", "joint2": "finger_joint1", "polycoef": "0 1 0 0 0", "solref": "0.005 1"}
    ElementTree.SubElement(ElementTree.SubElement(root, "equality"), "joint", mimic)


# impratio 20 and the elliptic cone are robosuite's: without them a grasped cube creeps out of the fingers.
_WORLD_XML = f"""
<mujoco model="franka_pick">
  <compiler angle="radian" autolimits="true" balanceinertia="true"/>
  <option timestep="{{timestep}}" integrator="implicitfast" cone="elliptic" impratio="20" iterations="20"/>
  <statistic center="0.6 0 0.5" extent="1.2"/>
  <visual>
    <map znear="0.005" zfar="20"/>
    <quality shadowsize="{{shadow}}" offsamples="{{samples}}"/>
    <global offwidth="64" offheight="64"/>
    <headlight active="0"/>  <!-- it would light each camera's view differently -->
  </visual>
  <default>
    <default class="visual"><geom contype="0" conaffinity="0" group="1" mass="0"/></default>
    <default class="collision"><geom contype="{_ROBOT}" conaffinity="{_WORLD}" group="3" mass="0"/></default>
    <default class="world"><geom contype="{_WORLD}" conaffinity="{_ROBOT | _WORLD}" group="1"/></default>
  </default>
  <asset/>
  <worldbody>
    <light name="key" directional="true" pos="0 0 2" dir="0.35 0.3 -1" ambient="0 0 0"
           diffuse="0.6 0.6 0.6" specular="0 0 0" castshadow="{{castshadow}}"/>
    <light name="fill" directional="true" pos="1 1 1" dir="-0.8 -0.6 -0.2" ambient="0.4 0.4 0.4"
           diffuse="0.2 0.2 0.2" specular="0 0 0" castshadow="false"/>
    <camera name="front" pos="-0.419 0 1.549" xyaxes="0 -1 0 1 0 1" fovy="21"/>
    <geom name="floor" class="world" type="plane" size="3 3 0.1" rgba="0.33 0.35 0.38 1"/>
    <geom name="table" class="world" type="box" size="0.3 0.5 0.2" pos="0.5 0 0.2" rgba="0.86 0.84 0.80 1"/>
    <body name="cube" pos="0.5 0 0.4225">
      <freejoint name="cube"/>
      <geom name="cube" class="world" type="box" size="{{cube}} {{cube}} {{cube}}" rgba="{{color}}" density="1000"
            condim="4" friction="1 0.005 0.0001" solref="0.01 1"/>
    </body>
  </worldbody>
</mujoco>
"""
