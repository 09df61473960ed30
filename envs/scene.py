"""Which compiled scene does a task use, and where is it kept?

Scenes are composed from robosuite's models once per machine and version (compose.py) and kept as self-contained MJCF in
the user's cache folder. `python -m envs.scene <folder>` writes them all to a folder; a computer without robosuite (next
to the robot, or with the GPU) loads them from there when TOTO_ROBOT_SCENES names it.
"""

from __future__ import annotations

import functools
import hashlib
import os
import subprocess
import sys
import tempfile
import warnings
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from importlib import metadata
from itertools import product
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import numpy.typing as npt

from envs import compose, meshes, robots, specs, worlds
from envs.meshes import Floats
from envs.robots import ARM_JOINTS, Robot

SCENES_FOLDER = "TOTO_ROBOT_SCENES"  # environment variable
ROBOTS = {robot.name: robot for robot in (robots.PANDA, robots.IIWA)}
WORLDS = {world.name: world for world in (worlds.PICK_SMALL, worlds.PICK_LARGE, worlds.CABINET)}
# What the four tasks need (registration.py), for `python -m envs.scene`.
PAIRS = (
    (robots.PANDA, worlds.PICK_SMALL),
    (robots.PANDA, worlds.CABINET),
    (robots.IIWA, worlds.PICK_LARGE),
    (robots.IIWA, worlds.CABINET),
)


@dataclass(frozen=True)
class Key:
    """What a scene is composed from."""

    robot: str
    world: str
    preset: str
    quality: str
    dressed: bool

    @property
    def file_name(self) -> str:
        """Return the name of an exported scene."""
        return f"{self.robot}_{self.world}_{self.preset}_{self.quality}{'_dressed' if self.dressed else ''}.xml"


@dataclass(frozen=True)
class Scene:
    """A compiled model and the addresses that stepping needs. All environments of a process share it; never written."""

    model: Any  # mujoco.MjModel
    digest: str
    robot: Robot
    arm_links: npt.NDArray[np.bool_]  # (nbody,) PixMC's "link" bodies: the hand and the fingers may touch things
    hand_site: int
    finger_bodies: tuple[int, int]
    positions: npt.NDArray[np.int64]  # (9,) qpos of the arm and the two driven fingers
    speeds: npt.NDArray[np.int64]  # (9,) the same in qvel
    bodies: dict[str, int]
    joints: dict[str, int]  # name to qpos address
    base_position_m: Floats
    base_rotation: Floats  # (3, 3) base frame to world


@functools.lru_cache(maxsize=16)
def load_scene(robot: str, world: str, preset: str, quality: str, dressed: bool = False) -> Scene:
    """Compile the scene of a robot, a world and a preset; the same object for the same arguments within a process.

    `dressed` scenes hold what randomisation needs besides.
    """
    xml = _text(Key(robot, world, preset, quality, dressed))
    model = mujoco.MjModel.from_xml_string(xml)
    rotation = np.zeros(9)
    mujoco.mju_quat2Mat(rotation, model.body("base").quat)
    bodies = {model.body(i).name: i for i in range(model.nbody)}
    joints = {model.joint(i).name: i for i in range(model.njnt)}
    driven = [joints[name] for name in (*ROBOTS[robot].joints, *ROBOTS[robot].gripper.joints)]
    assert driven[:ARM_JOINTS] == list(range(ARM_JOINTS))
    links = [name.startswith(("link", "fixed_base_link")) for name in bodies]
    left, right = ROBOTS[robot].gripper.fingers
    return Scene(
        model=model,
        digest=_digest(xml),
        robot=ROBOTS[robot],
        arm_links=np.array(links),
        hand_site=model.site("grasp").id,
        finger_bodies=(bodies[left], bodies[right]),
        positions=np.array([model.jnt_qposadr[i] for i in driven], np.int64),
        speeds=np.array([model.jnt_dofadr[i] for i in driven], np.int64),
        bodies=bodies,
        joints={name: int(model.jnt_qposadr[i]) for name, i in joints.items()},
        base_position_m=model.body("base").pos.copy(),
        base_rotation=rotation.reshape(3, 3),
    )


def cache_folder() -> Path:
    """Return where composed scenes are kept: `$XDG_CACHE_HOME/toto_robot/scenes`, by default under `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "toto_robot" / "scenes"


def export_scenes(folder: Path) -> list[Path]:
    """Write the scenes of all tasks, presets and qualities as MJCF files for computers without robosuite."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for (robot, world), preset, quality, dressed in product(
        PAIRS, specs.PRESETS, specs.RENDER_QUALITIES, (False, True)
    ):
        key = Key(robot.name, world.name, preset, quality, dressed)
        _write_atomically(folder / key.file_name, _cached_xml(key))
        written.append(folder / key.file_name)
    return written


def _digest(xml: str) -> str:
    """Hash everything but the drawn meshes' coordinates, whose last digit may depend on the machine that made them."""
    root = ElementTree.fromstring(xml)
    for mesh in root.iter("mesh"):
        if mesh.get("name", "").startswith("visual"):
            mesh.attrib.pop("vertex"), mesh.attrib.pop("face")
    return hashlib.sha256(ElementTree.tostring(root)).hexdigest()[:16]


def _text(key: Key) -> str:
    """Return the scene's MJCF: an exported one where the user names a folder, else the cached or composed one."""
    folder = os.environ.get(SCENES_FOLDER)
    if not folder:
        return _cached_xml(key)
    path = Path(folder) / key.file_name
    if not path.exists():
        raise ValueError(
            f"{SCENES_FOLDER}={folder} has no {path.name}; write it with `python -m envs.scene <folder>` on a "
            "computer with robosuite, or unset the variable"
        )
    return path.read_text()


def _cached_xml(key: Key) -> str:
    """Return the composed scene, from the cache when the same sources and versions made it before."""
    modules = (compose, meshes, robots, specs, worlds)
    sources = [Path(module.__file__ or "").read_bytes() for module in modules]
    versions = f"{_robosuite_version()} {mujoco.__version__}"
    made_from = hashlib.sha256(b"\0".join([*sources, versions.encode()])).hexdigest()[:20]
    path = cache_folder() / f"{made_from}_{key.file_name}"
    if path.exists():
        return path.read_text()
    xml = _compose_apart(key)
    try:
        _write_atomically(path, xml)
    except OSError as error:
        warnings.warn(f"cannot cache the scene in {path.parent} ({error}); each process builds it anew", stacklevel=2)
    return xml


def _robosuite_version() -> str:
    try:
        return metadata.version("robosuite")
    except metadata.PackageNotFoundError as error:
        raise RuntimeError(
            "robosuite is not installed, and scenes are composed from its models: `pip install robosuite==1.5.2`, or "
            f"set {SCENES_FOLDER} to a folder that `python -m envs.scene <folder>` wrote elsewhere"
        ) from error


def _compose_apart(key: Key) -> str:
    """Compose in another process: robosuite's import changes MUJOCO_GL and loads 300 MB that stepping never needs."""
    root = str(Path(__file__).resolve().parent.parent)
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])))
    command = [sys.executable, "-c", "import sys; from envs import scene; scene.print_scene(*sys.argv[1:])"]
    arguments = [key.robot, key.world, key.preset, key.quality, *(["dressed"] if key.dressed else [])]
    done = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"composing the scene from robosuite's models failed:\n{done.stderr.strip()[-2000:]}")
    return done.stdout


def print_scene(robot: str, world: str, preset: str, quality: str, *dressed: str) -> None:
    """Print a scene's MJCF text."""
    sys.stdout.write(compose.compose(ROBOTS[robot], WORLDS[world], specs.PRESETS[preset], quality, bool(dressed)))


def _write_atomically(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        file.write(text)
    os.replace(file.name, path)


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit("usage: python -m envs.scene <folder>: write the scenes of all tasks for computers without robosuite")
    for scene_path in export_scenes(Path(sys.argv[1])):
        print(scene_path)
