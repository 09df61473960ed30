"""How do robosuite's models become the lean world that is stepped and drawn?

robosuite's robot and gripper give kinematics, inertias and meshes, its arena and objects the rest; the meshes are
decimated, textures and sites dropped, torque motors replaced by position servos. The result is one MJCF text without
files around it. Only this module imports robosuite, in a process of its own (scene.py).
"""

from __future__ import annotations

import sys
import types
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from typing import Any

import mujoco
import numpy as np
import numpy.typing as npt

from envs import meshes, specs
from envs.meshes import Floats
from envs.robots import Robot
from envs.worlds import FURNITURE, OBJECT, ROBOT, World, add_dressing, add_world

BASE_POSITION_M = (1.0, 0.0, 0.0)  # PixMC: the robot at x = 1 faces -x
TRIANGLES = {"lean": 6_000, "full": 60_000}  # for the whole robot; robosuite ships 168 000
HULL_VERTICES = 64  # of a link's convex collision hull; robosuite's link 1 has 1588
ARM_ARMATURE_KGM2 = 0.1  # MuJoCo Menagerie's Panda; robosuite's 5 / (i + 1) is a stabiliser, not the motor
_FINGER_ARMATURE_KGM2 = 0.01  # of the Robotiq's hinges, whose links weigh 30 g


def compose(robot: Robot, world: World, preset: specs.Preset, quality: str, dressed: bool) -> str:
    """Return the MJCF text of the robot, its surroundings, cameras and servos; `dressed` adds randomisable parts."""
    source = _robosuite_robot(robot)
    original = mujoco.MjModel.from_xml_string(ElementTree.tostring(source, encoding="unicode"))
    arm = source.find("worldbody/body")
    assert arm is not None
    # Shadows and antialiasing cost by the software renderer ten times what the lean picture does.
    effects = {"lean": ("0", "0", "false"), "full": ("4096", "4", "true")}[quality]
    header = _HEADER_XML.format(
        name=f"{robot.name}_{world.name}",
        timestep=preset.timestep_s,
        **dict(zip(("shadow", "samples", "castshadow"), effects, strict=True)),
    )
    root = ElementTree.fromstring(header)
    assets, worldbody, depth = root.find("asset"), root.find("worldbody"), root.find("visual/map")
    assert assets is not None and worldbody is not None and depth is not None
    if quality == "full":
        depth.set("shadowclip", "2")  # at 1 the floor outside the light's volume is speckled
    drawn = _drawn_meshes(original, TRIANGLES[quality])
    hulls = _collision_hulls(original)
    for body in list(arm.iter("body")):
        _rebuild_geoms(body, assets, drawn, hulls)
    for element in arm.iter():
        _strip_prefixes(element)
    _refit_joints(arm, robot)
    _add_hand_parts(arm, robot)
    add_world(worldbody, world)
    worldbody.insert(0, arm)  # first, so that the robot's joints lead qpos and qvel
    _add_servos(root, robot, preset)
    _couple_fingers(root, robot)
    if dressed:
        add_dressing(root)
    return ElementTree.tostring(root, encoding="unicode")


# --- robosuite --------------------------------------------------------------------------------------------------------


def silence_robosuite() -> None:
    """Keep robosuite from printing warnings when it is imported."""
    quiet = types.ModuleType("robosuite.macros_private")
    quiet.CONSOLE_LOGGING_LEVEL = "ERROR"  # type: ignore[attr-defined]
    sys.modules.setdefault("robosuite.macros_private", quiet)


def _robosuite_robot(robot: Robot) -> ElementTree.Element:
    """Return robosuite's world with the arm and its gripper at PixMC's base pose."""
    silence_robosuite()
    from robosuite.models import MujocoWorldBase, grippers, robots

    arm = getattr(robots, robot.model)(idn=0)
    arm.add_gripper(getattr(grippers, robot.gripper.name)(idn="0_right"), arm.eef_name["right"])
    arm.set_base_xpos(np.array(BASE_POSITION_M))
    arm.set_base_ori(np.array([0.0, 0.0, np.pi]))
    world = MujocoWorldBase()
    world.merge(arm)
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


def _mesh_asset(assets: ElementTree.Element, name: str, vertices: Floats, faces: npt.NDArray[np.int64] | None) -> None:
    # A tenth of a millimetre is enough to draw; hulls keep a hundredth.
    digits = 4 if faces is not None else 5
    asset = {"name": name, "vertex": " ".join(f"{value:.{digits}f}" for value in vertices.reshape(-1))}
    if faces is not None:
        asset |= {"face": " ".join(map(str, faces.reshape(-1))), "inertia": "shell"}
    ElementTree.SubElement(assets, "mesh", asset)


def _refit_joints(arm: ElementTree.Element, robot: Robot) -> None:
    """Give joints the real arm's armature, no dry friction (nine constraint rows a step), and the robot no weight."""
    for body in arm.iter("body"):
        body.set("gravcomp", "1")
    for joint in arm.iter("joint"):
        joint.attrib.pop("frictionloss", None)
        if joint.attrib["name"] in robot.joints:
            joint.set("armature", str(ARM_ARMATURE_KGM2))
        elif joint.get("type") != "slide":
            joint.set("armature", str(_FINGER_ARMATURE_KGM2))
            joint.set("damping", "0.5")
        elif joint.attrib["name"] == "finger_joint2":  # robosuite's runs 0 .. -0.04; both fingers open upwards here
            joint.set("axis", "0 -1 0")
            joint.set("range", "0 0.04")


def _add_hand_parts(arm: ElementTree.Element, robot: Robot) -> None:
    """Put the grasp point and PixMC's wrist camera on the hand."""
    hand = next(body for body in arm.iter("body") if body.get("name") == "right_hand")
    ElementTree.SubElement(hand, "site", {"name": "grasp", "pos": f"0 0 {robot.gripper.grasp_m}", "group": "4"})
    ElementTree.SubElement(hand, "camera", {"name": "wrist", **robot.wrist_camera})


def _add_servos(root: ElementTree.Element, robot: Robot, preset: specs.Preset) -> None:
    actuators = ElementTree.SubElement(root, "actuator")
    for joint, torque in zip(robot.joints, robot.torque_nm, strict=True):
        servo = {"name": joint, "joint": joint, "forcerange": f"{-torque} {torque}"}
        servo |= {"kp": str(preset.servo_kp_nm_rad), "kv": str(preset.servo_kd_nms_rad)}
        ElementTree.SubElement(actuators, "position", servo)
    hand = robot.gripper
    for joint, sign in zip(hand.joints, (1.0, hand.right_sign), strict=True):
        low, high = sorted((sign * hand.open, sign * hand.closed))
        servo = {"name": joint, "joint": joint, "kp": f"{hand.kp:g}", "forcerange": f"{-hand.force} {hand.force}"}
        ElementTree.SubElement(actuators, "position", {**servo, "ctrlrange": f"{low:g} {high:g}"})


def _couple_fingers(root: ElementTree.Element, robot: Robot) -> None:
    """Tie the fingers to one motor, as the real hands do, and what else their mechanism moves."""
    left, right = robot.gripper.joints
    equalities = ElementTree.SubElement(root, "equality")
    for joint, factor in ((right, robot.gripper.right_sign), *robot.gripper.ties):
        tie = {"joint1": joint, "joint2": left, "polycoef": f"0 {factor:g} 0 0 0", "solref": "0.005 1"}
        ElementTree.SubElement(equalities, "joint", tie)


# impratio 20 and the elliptic cone are robosuite's: without them a grasped cube creeps out of the fingers.
_HEADER_XML = f"""
<mujoco model="{{name}}">
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
    <default class="collision">
      <geom contype="{ROBOT}" conaffinity="{OBJECT}" group="3" mass="0"/>
    </default>
    <default class="world"><geom contype="{OBJECT}" conaffinity="{ROBOT | OBJECT}" group="1"/></default>
    <default class="furniture"><geom contype="{FURNITURE}" conaffinity="{ROBOT}" group="1"/></default>
    <default class="prop"><geom contype="{OBJECT}" conaffinity="{ROBOT | OBJECT | FURNITURE}" group="1"/></default>
  </default>
  <asset/>
  <worldbody>
    <light name="key" directional="true" pos="0 0 2" dir="0.35 0.3 -1" ambient="0 0 0"
           diffuse="0.6 0.6 0.6" specular="0 0 0" castshadow="{{castshadow}}"/>
    <light name="fill" directional="true" pos="1 1 1" dir="-0.8 -0.6 -0.2" ambient="0.4 0.4 0.4"
           diffuse="0.2 0.2 0.2" specular="0 0 0" castshadow="false"/>
    <geom name="floor" class="world" type="plane" size="3 3 0.1" rgba="0.33 0.35 0.38 1"/>
  </worldbody>
</mujoco>
"""
