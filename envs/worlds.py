"""What stands around the robot: PixMC's table with a cube, or its kitchen cabinet with a drawer, as MJCF?

World frame, metres: z up, the robot at x = 1 faces -x. robosuite has a table arena and boxes but no cabinet; that one
is built from boxes after PixMC's Sektion cabinet (`sektion_cabinet_2.urdf`): where its joints, doors and handle are.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass

# Collision bits. The robot meets everything but itself (PixMC's filter); the cabinet's own parts never meet.
ROBOT, OBJECT, FURNITURE = 1, 2, 4

TABLE_SIZE_M = (0.6, 1.0, 0.4)
TABLE_POSITION_M = (0.5, 0.0, 0.2)
CUBE_COLOR = (0.0, 0.447, 0.741, 1.0)

CABINET_POSITION_M = (0.05, 0.0, 0.45)
DRAWER_POSITION_M = (0.0515, 0.0, 0.3172)  # in the cabinet's frame, closed
DRAWER_TRAVEL_M = 0.4
DRAWER_DAMPING_NS_M = 10.0
HANDLE_POINT_M = (0.305, 0.0, 0.01)  # in the drawer's frame: the middle of the bar
PROP_SIDE_M = 0.08
PROP_SPACING_M = 0.09
PROP_DENSITY_KG_M3 = 400.0
PROPS = 4
_BOARD_KG_M3 = 600.0

# What randomisation (randomize.py) needs in a scene: things without contact, and patterns for surfaces.
DISTRACTORS = 6
TEXTURES = 8
_SHAPES = ("box", "sphere", "cylinder", "capsule", "ellipsoid", "box")


@dataclass(frozen=True, kw_only=True)
class World:
    """One surrounding: its name, the front camera, and the cube's side where there is one."""

    name: str
    front_camera: dict[str, str]
    cube_side_m: float | None = None


_TABLE_CAMERA = {"pos": "-0.419 0 1.549", "xyaxes": "0 -1 0 1 0 1", "fovy": "21"}
# From the side, past the robot's shoulder: the drawer's front, its handle and the hand are all seen.
_CABINET_CAMERA = {"pos": "1.25 -1.2 1.45", "xyaxes": "0.8885 0.4588 -0.0000 -0.2154 0.4171 0.8830", "fovy": "40"}

PICK_SMALL = World(name="pick45", front_camera=_TABLE_CAMERA, cube_side_m=0.045)
PICK_LARGE = World(name="pick60", front_camera=_TABLE_CAMERA, cube_side_m=0.06)
CABINET = World(name="cabinet", front_camera=_CABINET_CAMERA)


def add_world(worldbody: ElementTree.Element, world: World) -> None:
    """Append the surrounding's camera, furniture and objects to a worldbody."""
    camera = ElementTree.Element("camera", {"name": "front", **world.front_camera})
    worldbody.insert(2, camera)  # behind the two lights
    if world.cube_side_m is not None:
        _add_table(worldbody)
        _add_cube(worldbody, world.cube_side_m)
    else:
        _add_cabinet(worldbody)


def add_dressing(root: ElementTree.Element) -> None:
    """Append distractors (parked below the floor) and procedural textures with their materials."""
    worldbody, assets = root.find("worldbody"), root.find("asset")
    assert worldbody is not None and assets is not None
    for index, shape in enumerate(_SHAPES):
        name = f"distractor{index}"
        body = ElementTree.SubElement(worldbody, "body", {"name": name, "mocap": "true", "pos": f"{index} 0 -2"})
        look = {"name": name, "class": "visual", "type": shape, "size": "0.03 0.03 0.03", "rgba": "0.5 0.6 0.5 1"}
        ElementTree.SubElement(body, "geom", look)
    for index in range(TEXTURES):
        # Pairs of greys and tones, so that a geom's own colour shows through.
        light, dark = 1.0 - 0.05 * (index % 3), 0.30 + 0.08 * index
        texture = {"name": f"pattern{index}", "type": "2d", "width": "128", "height": "128"}
        texture |= {"rgb1": f"{light} {light} {light}", "rgb2": f"{dark} {dark * 0.9:.3f} {dark * 0.8:.3f}"}
        texture |= {"builtin": ("checker", "gradient", "flat")[index % 3]}
        if texture["builtin"] == "flat":
            texture |= {"mark": "random", "markrgb": "0.2 0.2 0.2", "random": "0.05"}
        ElementTree.SubElement(assets, "texture", texture)
        repeat = f"{1 + index} {1 + index}"
        material = {"name": f"pattern{index}", "texture": f"pattern{index}", "texrepeat": repeat, "texuniform": "true"}
        ElementTree.SubElement(assets, "material", material)


def _add_table(worldbody: ElementTree.Element) -> None:
    """robosuite's table arena at PixMC's size: its collision box, in one colour."""
    from robosuite.models.arenas import TableArena

    x, y, _ = TABLE_POSITION_M
    arena = TableArena(table_full_size=TABLE_SIZE_M, table_offset=(x, y, TABLE_SIZE_M[2]), has_legs=False)
    position, half = _numbers(arena.center_pos), _numbers(arena.table_half_size)
    _geom(worldbody, "world", {"name": "table", "pos": position, "size": half, "rgba": "0.86 0.84 0.80 1"})


def _add_cube(worldbody: ElementTree.Element, side_m: float) -> None:
    """robosuite's box object."""
    from robosuite.models.objects import BoxObject

    box = BoxObject("cube", size=[side_m / 2] * 3, density=1000, rgba=CUBE_COLOR)
    source = next(geom for geom in box.get_obj().iter("geom") if geom.get("group") == "0")
    kept = {key: source.attrib[key] for key in ("size", "density")}
    x, y, _ = TABLE_POSITION_M
    body = ElementTree.SubElement(
        worldbody, "body", {"name": "cube", "pos": _numbers((x, y, TABLE_SIZE_M[2] + side_m / 2))}
    )
    ElementTree.SubElement(body, "freejoint", {"name": "cube"})
    # Soft in normal direction and with torsional friction, else the cube turns between the fingers.
    contact = {"condim": "4", "friction": "1 0.005 0.0001", "solref": "0.01 1"}
    _geom(body, "world", {"name": "cube", "rgba": _numbers(CUBE_COLOR), **kept, **contact})


def _add_cabinet(worldbody: ElementTree.Element) -> None:
    """A carcass that is put somewhere else every episode (a mocap body), its top drawer, and four boxes in it."""
    cabinet = ElementTree.SubElement(
        worldbody, "body", {"name": "cabinet", "mocap": "true", "pos": _numbers(CABINET_POSITION_M)}
    )
    white, dark = "0.80 0.80 0.78 1", "0.46 0.47 0.50 1"
    boards = {  # centre and half size in the cabinet's frame; depth 0.63, width 0.76, height 0.77
        "back": ((-0.306, 0, 0), (0.010, 0.376, 0.384), white),
        "left": ((-0.005, 0.367, 0), (0.311, 0.009, 0.384), white),
        "right": ((-0.005, -0.367, 0), (0.311, 0.009, 0.384), white),
        "top": ((-0.005, 0, 0.393), (0.311, 0.376, 0.009), white),
        "bottom": ((-0.005, 0, -0.375), (0.311, 0.376, 0.009), white),
        "shelf": ((-0.005, 0, 0.250), (0.290, 0.358, 0.003), white),
        "lower_front": ((0.306, 0, 0.188), (0.010, 0.374, 0.060), dark),  # the bottom drawer, never opened
        "door_left": ((0.306, 0.188, -0.130), (0.010, 0.186, 0.254), dark),
        "door_right": ((0.306, -0.188, -0.130), (0.010, 0.186, 0.254), dark),
    }
    for name, (position, half, color) in boards.items():
        _board(cabinet, f"cabinet_{name}", position, half, color)
    _bar(cabinet, "lower", (0.0515, 0.0, 0.18795), False)
    drawer = ElementTree.SubElement(cabinet, "body", {"name": "drawer", "pos": _numbers(DRAWER_POSITION_M)})
    joint = {"name": "drawer", "type": "slide", "axis": "1 0 0", "range": f"0 {DRAWER_TRAVEL_M}"}
    ElementTree.SubElement(drawer, "joint", {**joint, "damping": str(DRAWER_DAMPING_NS_M)})
    walls = {
        "front": ((0.255, 0, 0.0), (0.010, 0.374, 0.060), dark),
        "floor": ((-0.02, 0, -0.0455), (0.265, 0.340, 0.005), white),
        "back": ((-0.28, 0, 0.0), (0.005, 0.340, 0.040), white),
        "left": ((-0.02, 0.345, 0.0), (0.265, 0.005, 0.050), white),
        "right": ((-0.02, -0.345, 0.0), (0.265, 0.005, 0.050), white),
    }
    for name, (position, half, color) in walls.items():
        _board(drawer, f"drawer_{name}", position, half, color)
    _bar(drawer, "handle", (0.0, 0.0, 0.0), True)
    for index in range(PROPS):
        prop = ElementTree.SubElement(worldbody, "body", {"name": f"prop{index}", "pos": f"{index} 0 -1"})
        ElementTree.SubElement(prop, "freejoint", {"name": f"prop{index}"})
        size = _numbers([PROP_SIDE_M / 2] * 3)
        look = {"name": f"prop{index}", "size": size, "rgba": "0.75 0.55 0.30 1", "density": str(PROP_DENSITY_KG_M3)}
        _geom(prop, "prop", look)


def _board(body: ElementTree.Element, name: str, position: object, half: object, color: str) -> None:
    values = {"pos": _numbers(position), "size": _numbers(half), "rgba": color, "density": str(_BOARD_KG_M3)}
    _geom(body, "furniture", {"name": name, **values})


def _bar(body: ElementTree.Element, name: str, origin: tuple[float, float, float], touched: bool) -> None:
    """A handle of 14 x 150 x 20 mm on two stand-offs, 4 cm before the front."""
    x, y, z = (a + b for a, b in zip(origin, HANDLE_POINT_M, strict=True))
    parts = {
        name: ((x, y, z), (0.007, 0.075, 0.010)),
        f"{name}_post_left": ((x - 0.02, y + 0.07, z), (0.020, 0.005, 0.005)),
        f"{name}_post_right": ((x - 0.02, y - 0.07, z), (0.020, 0.005, 0.005)),
    }
    for part, (position, half) in parts.items():
        look = {"name": part, "pos": _numbers(position), "size": _numbers(half), "rgba": "0.18 0.18 0.20 1"}
        look |= {"density": str(_BOARD_KG_M3), "friction": "2 0.05 0.0001", "condim": "4"} if touched else {}
        _geom(body, "furniture", look)


def _geom(body: ElementTree.Element, kind: str, attributes: dict[str, str]) -> None:
    ElementTree.SubElement(body, "geom", {"class": kind, "type": "box", **attributes})


def _numbers(values: object) -> str:
    return " ".join(f"{float(value):.6g}" for value in values)  # type: ignore[attr-defined]
