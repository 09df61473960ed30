"""How is a robosuite environment built, seeded from one place, and drawn without robosuite's renderer?

Pictures come from envs/render.py: robosuite's own contexts are never made current and return others' frames.
"Lean" decimates the meshes that are only drawn, once a machine, and shrinks large textures; the physics stays the same
to the bit, which is checked when the meshes are made.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
import sys
import tempfile
import types
import xml.etree.ElementTree as ElementTree
from importlib import metadata
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import numpy.typing as npt

from envs import meshes
from envs.meshes import Floats
from envs.render import CameraRenderer

TRIANGLES = 8_000  # a robot, lean; robosuite ships 168 000
TEXTURE_SIDE_PX = 256  # lean; robosuite's are up to 2048
_COLLISION_GROUP, _HIDDEN_GROUP = 0, 3  # robosuite hides group 0; CameraRenderer draws it and hides 3


def import_robosuite() -> Any:
    """Import robosuite without its warnings, and without its choice of `MUJOCO_GL` for the rest of the process."""
    quiet = types.ModuleType("robosuite.macros_private")
    quiet.CONSOLE_LOGGING_LEVEL = "ERROR"  # type: ignore[attr-defined]
    sys.modules.setdefault("robosuite.macros_private", quiet)
    before = os.environ.get("MUJOCO_GL")
    import robosuite

    if before is None:
        os.environ.pop("MUJOCO_GL", None)
    else:
        os.environ["MUJOCO_GL"] = before
    return robosuite


class EpisodeRandom(np.random.Generator):
    """The one generator that everything in a robosuite environment draws from, restarted at every episode.

    robosuite hands `env.rng` to its samplers, arenas and objects when it builds them; since it is always this object,
    restarting it seeds them all.
    """

    def __init__(self) -> None:
        super().__init__(np.random.PCG64(0))

    def restart(self, seed: int) -> None:
        """Draw from now on as a new generator with this seed would."""
        self.bit_generator.state = np.random.PCG64(seed).state

    def choice(self, a: Any, *arguments: Any, **options: Any) -> Any:
        """Choose; names in alphabetical order, since robosuite takes them from a set: another order in each process."""
        if isinstance(a, list) and all(isinstance(item, str) for item in a):
            a = sorted(a)
        return super().choice(a, *arguments, **options)


def controller_configs(robots: tuple[str, ...], action_mode: str) -> list[dict[str, Any]]:
    """Return robosuite's default controller of each robot in the world frame, or its joint position controller.

    In robosuite's "base" frame the IIWA's actions turn with its first joint; and robomimic's data sets, made before
    robosuite 1.5, are in the world frame.
    """
    import_robosuite()
    from robosuite.controllers import load_composite_controller_config, load_part_controller_config

    configs = []
    for robot in robots:
        config = load_composite_controller_config(robot=robot)
        for part in ("right", "left"):
            arm = config["body_parts"].get(part)
            if arm is None:
                continue
            if action_mode == "joint_delta":
                joints = load_part_controller_config(default_controller="JOINT_POSITION")
                config["body_parts"][part] = {**joints, "gripper": arm.get("gripper", {"type": "GRIP"})}
            elif "input_ref_frame" in arm:
                arm["input_ref_frame"] = "world"
        configs.append(config)
    return configs


def build(name: str, quality: str, random: EpisodeRandom, **options: Any) -> Any:
    """Return robosuite's environment `name`; `options` go to robosuite.

    It has no renderer of its own. Models are lean or as shipped, and whatever is random in it comes from `random`.
    """
    import_robosuite()
    from robosuite.environments import base

    original = base.REGISTERED_ENVS[name]
    subclass = f"{name}WithoutRenderer"

    def edit_model_xml(self: Any, xml: str) -> str:
        edited: str = original.edit_model_xml(self, xml)
        return lean_xml(edited) if quality == "lean" else edited

    def forget_sim(self: Any) -> None:  # robosuite's collects the garbage of the whole process, at every reset
        self.sim = None

    methods = {"edit_model_xml": edit_model_xml, "_destroy_sim": forget_sim}
    made = type(original)(subclass, (original,), methods)
    del base.REGISTERED_ENVS[subclass]  # robosuite's metaclass puts every class there
    return made(
        seed=random,  # robosuite's default_rng() returns a generator as it is
        has_renderer=False,
        has_offscreen_renderer=False,
        use_camera_obs=False,
        ignore_done=True,
        renderer="mujoco",
        **options,
    )


_DRAWING = b"each camera has its own headlight"  # before, all had the first one's: other pictures, another scene


def model_digest(env: Any, configs: list[dict[str, Any]]) -> str:
    """Hash what decides physics and pictures: the MJCF without places of files, the controllers, robosuite, lights."""
    root = ElementTree.fromstring(env.model.get_xml())
    for element in root.iter():
        if "file" in element.attrib:
            element.set("file", Path(element.attrib["file"]).name)
    text = ElementTree.tostring(root) + json.dumps(configs, sort_keys=True).encode() + _DRAWING
    return hashlib.sha256(text + metadata.version("robosuite").encode()).hexdigest()[:16]


# --- lean assets ------------------------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """Return where lean assets are kept: `$XDG_CACHE_HOME/toto_robot/robosuite`, by default under `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "toto_robot" / "robosuite"


def lean_xml(xml: str) -> str:
    """Return an MJCF text with drawn meshes and textures replaced by small ones from the cache."""
    root = ElementTree.fromstring(xml)
    assets = root.find("asset")
    assert assets is not None
    folder = cache_folder() / _assets_key(assets)
    if not (folder / "replaced.json").exists():
        _write_assets(xml, folder)
    _point_to(assets, folder, json.loads((folder / "replaced.json").read_text()))
    return ElementTree.tostring(root, encoding="unicode")


def _point_to(assets: ElementTree.Element, folder: Path, replaced: dict[str, str]) -> None:
    for element in assets:
        file = replaced.get(f"{element.tag} {element.get('name')}")
        if file is not None:
            element.set("file", str(folder / file))
        if file is not None and element.tag == "mesh":
            for name in ("scale", "refpos", "refquat"):  # they are in the vertices now
                element.attrib.pop(name, None)
            element.set("inertia", "shell")  # decimated surfaces may be open


def _assets_key(assets: ElementTree.Element) -> str:
    """Hash what the lean assets are made from: names and files, this code, and the versions."""
    sources = [Path(module.__file__ or "").read_bytes() for module in (meshes, sys.modules[__name__])]
    listed = [sorted({**e.attrib, "file": Path(e.get("file", "")).name}.items()) for e in assets if e.get("file")]
    versions = f"{metadata.version('robosuite')} {mujoco.__version__} {listed}"
    return hashlib.sha256(b"\0".join([*sources, versions.encode()])).hexdigest()[:20]


def _write_assets(xml: str, folder: Path) -> None:
    """Make the lean assets of a scene in a folder that appears when it is complete."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=folder.parent, prefix="part-"))
    try:
        shipped = mujoco.MjModel.from_xml_string(xml)
        replaced = _write_textures(xml, part) | _write_meshes(shipped, part)
        _check_physics(xml, part, replaced, shipped)
        (part / "replaced.json").write_text(json.dumps(replaced, indent=1))
        part.rename(folder)
    except OSError:
        if not (folder / "replaced.json").exists():  # else another process was first
            raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _write_meshes(model: Any, folder: Path) -> dict[str, str]:
    """Write decimated copies of the large meshes that are only drawn; return their asset names and files."""
    drawn = [mesh for mesh in range(model.nmesh) if _only_drawn(model, mesh)]
    weight = {mesh: _weight(model, mesh) for mesh in drawn}
    robots = {model.mesh(mesh).name.split("_")[0] for mesh in drawn if model.mesh(mesh).name.startswith("robot")}
    budget = TRIANGLES * max(1, len(robots)) / max(1e-9, sum(weight.values()))
    replaced = {}
    for mesh in drawn:
        vertices, faces = _mesh(model, mesh)
        triangles = max(24, int(budget * weight[mesh]))
        if len(faces) > triangles:
            name = model.mesh(mesh).name
            replaced[f"mesh {name}"] = file = f"mesh_{mesh}.stl"
            _write_stl(folder / file, *meshes.decimate(vertices, faces, triangles))
    return replaced


def _only_drawn(model: Any, mesh: int) -> bool:
    """Say whether no geom collides with a mesh, and no picture is wrapped around it by texture coordinates."""
    geoms = np.nonzero((model.geom_type == mujoco.mjtGeom.mjGEOM_MESH) & (model.geom_dataid == mesh))[0]
    collides = bool(((model.geom_contype[geoms] != 0) | (model.geom_conaffinity[geoms] != 0)).any())
    return not collides and len(geoms) > 0 and not _is_wrapped(model, mesh, geoms)


def _is_wrapped(model: Any, mesh: int, geoms: npt.NDArray[np.int64]) -> bool:
    materials = model.geom_matid[geoms]
    textured = bool((model.mat_texid[materials[materials >= 0]] >= 0).any())
    return textured and int(model.mesh_texcoordadr[mesh]) >= 0


def _mesh(model: Any, mesh: int) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Return vertices (V, 3) in the frame of the asset's file, scaled, and faces (F, 3)."""
    first, count = int(model.mesh_vertadr[mesh]), int(model.mesh_vertnum[mesh])
    first_face, faces = int(model.mesh_faceadr[mesh]), int(model.mesh_facenum[mesh])
    rotation = np.zeros(9)
    mujoco.mju_quat2Mat(rotation, model.mesh_quat[mesh])
    vertices = model.mesh_vert[first : first + count].astype(np.float64) @ rotation.reshape(3, 3).T
    return vertices + model.mesh_pos[mesh], model.mesh_face[first_face : first_face + faces].astype(np.int64)


def _weight(model: Any, mesh: int) -> float:
    """Return a mesh's claim on triangles: the root of its area, four times that for what the wrist camera sees."""
    vertices, faces = _mesh(model, mesh)
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    area = 0.5 * float(np.linalg.norm(np.cross(b - a, c - a), axis=1).sum())
    return float(np.sqrt(area)) * (4.0 if model.mesh(mesh).name.startswith("gripper") else 1.0)


def _write_stl(path: Path, vertices: Floats, faces: npt.NDArray[np.int64]) -> None:
    """Write a binary STL: 80 bytes, the count, then per triangle a normal (unused), three corners and two bytes."""
    record = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
    triangles = np.zeros(len(faces), record)
    triangles["corners"] = vertices[faces]
    path.write_bytes(bytes(80) + np.uint32(len(faces)).tobytes() + triangles.tobytes())


def _write_textures(xml: str, folder: Path) -> dict[str, str]:
    """Write smaller copies of the large textures; return their asset names and files."""
    from PIL import Image

    replaced = {}
    for index, texture in enumerate(ElementTree.fromstring(xml).iter("texture")):
        path = texture.get("file")
        if path is None or texture.get("gridsize") is not None:
            continue
        with Image.open(path) as image:
            shrink = TEXTURE_SIDE_PX / max(image.size)
            if shrink < 1.0:
                replaced[f"texture {texture.get('name')}"] = file = f"texture_{index}.png"
                size = (max(1, round(image.width * shrink)), max(1, round(image.height * shrink)))
                image.convert("RGB").resize(size, Image.Resampling.BOX).save(folder / file)
    return replaced


def _check_physics(xml: str, folder: Path, replaced: dict[str, str], shipped: Any) -> None:
    """Leave out the meshes whose decimation moves a body's mass; RuntimeError when that is not the reason."""
    while different := _bodies_that_differ(shipped, _compile(xml, folder, replaced)):
        used = {int(shipped.geom_dataid[g]) for g in range(shipped.ngeom) if int(shipped.geom_bodyid[g]) in different}
        dropped = {f"mesh {shipped.mesh(mesh).name}" for mesh in used if mesh >= 0} & replaced.keys()
        if not dropped:
            names = ", ".join(shipped.body(body).name for body in sorted(different))
            raise RuntimeError(f"lean meshes change the physics of {names}; use render_quality='full'")
        for name in dropped:
            del replaced[name]


def _compile(xml: str, folder: Path, replaced: dict[str, str]) -> Any:
    root = ElementTree.fromstring(xml)
    assets = root.find("asset")
    assert assets is not None
    _point_to(assets, folder, replaced)
    return mujoco.MjModel.from_xml_string(ElementTree.tostring(root, encoding="unicode"))


def _bodies_that_differ(shipped: Any, lean: Any) -> set[int]:
    different: set[int] = set()
    for field in ("body_mass", "body_inertia", "body_ipos", "body_iquat"):
        change = getattr(shipped, field) != getattr(lean, field)
        different |= {int(body) for body in np.nonzero(change.reshape(shipped.nbody, -1).any(axis=1))[0]}
    return different


# --- pictures ---------------------------------------------------------------------------------------------------------

# What a GL context holds of a model or the camera uses. Sizes and colours of geoms go to the scene at every draw.
_LOOK = (
    *("mesh_vert", "mesh_face", "mesh_facenum", "mesh_vertnum", "tex_data", "tex_type", "tex_width", "tex_height"),
    *("mat_texid", "mat_rgba", "mat_texrepeat", "mat_texuniform", "mat_specular", "mat_shininess", "mat_emission"),
    *("geom_type", "geom_dataid", "geom_matid", "geom_group", "geom_bodyid", "site_bodyid", "body_parentid"),
    *("cam_bodyid", "cam_fovy", "light_bodyid", "light_active", "light_ambient", "light_diffuse", "light_specular"),
)
_looks: dict[str, Any] = {}  # models to draw with, by look: CameraRenderer keeps a GL context for each for good


class Pictures:
    """Draws one environment, with a model that all environments of the same look share: one GL context a look.

    robosuite compiles a new model at every hard reset; a GL context for each would fill the memory.
    """

    def __init__(self, quality: str) -> None:
        self.quality = quality
        self._source: Any = None
        self._look = ""
        self._drawn: Any = None
        self._renderer: CameraRenderer | None = None

    def draw(self, model: Any, data: Any, cameras: tuple[str, ...], size_px: int) -> dict[str, npt.NDArray[np.uint8]]:
        """Return an image (size, size, 3) a camera, RGB, origin top left."""
        if model is not self._source:
            self._adopt(model)
        assert self._renderer is not None
        self._drawn.geom_size[:], self._drawn.geom_rgba[:] = model.geom_size, model.geom_rgba
        return self._renderer.draw(data, cameras, size_px, size_px)

    def _adopt(self, model: Any) -> None:
        look = _look(model, self.quality)
        if look != self._look:
            if look not in _looks:
                _looks[look] = _to_draw(model, self.quality)
            self._drawn, self._look = _looks[look], look
            self._renderer = CameraRenderer(self._drawn, self.quality)
        self._source = model


def _look(model: Any, quality: str) -> str:
    digest = hashlib.blake2b(f"{quality} {model.nq} {model.stat.extent}".encode(), digest_size=16)
    for field in _LOOK:
        digest.update(np.ascontiguousarray(getattr(model, field)).tobytes())
    digest.update(model.names)
    return digest.hexdigest()


def _to_draw(model: Any, quality: str) -> Any:
    """Return a copy of a model that hides what robosuite hides and, lean, leaves out costly effects."""
    drawn = copy.deepcopy(model)
    drawn.geom_group[drawn.geom_group == _COLLISION_GROUP] = _HIDDEN_GROUP
    drawn.vis.global_.offwidth = drawn.vis.global_.offheight = 64  # grown to what is asked for
    if quality == "lean":
        drawn.vis.quality.offsamples = drawn.vis.quality.shadowsize = 0
        drawn.mat_reflectance[:] = 0.0
    return drawn
