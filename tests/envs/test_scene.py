"""Are scenes what their parts say, and do they load where robosuite is not installed?"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import mujoco
import numpy as np
import pytest

from envs import scene, specs
from envs.robots import IIWA, PANDA

# robosuite cannot be imported, and its metadata cannot be read: a robot-side computer.
_WITHOUT_ROBOSUITE = """
import sys
from importlib import metadata
sys.modules["robosuite"] = None
found = metadata.version
def version(name):
    if name == "robosuite":
        raise metadata.PackageNotFoundError(name)
    return found(name)
metadata.version = version
"""
_START = """
from envs.cabinet import make_kuka_cabinet
env = make_kuka_cabinet(obs_mode="state")
print(env.reset(seed=3)[0]["state"].tobytes().hex())
"""


def _run(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **variables}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


def test_exported_scenes_load_without_robosuite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scene, "PAIRS", scene.PAIRS[-1:])
    monkeypatch.setattr(specs, "PRESETS", {"real": specs.PRESETS["real"]})
    monkeypatch.setattr(specs, "RENDER_QUALITIES", ("lean",))
    written = scene.export_scenes(tmp_path)
    assert [path.name for path in written] == [
        "kuka_iiwa7_cabinet_real_lean.xml",
        "kuka_iiwa7_cabinet_real_lean_dressed.xml",
    ]
    done = _run(_WITHOUT_ROBOSUITE + _START, TOTO_ROBOT_SCENES=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout == _run(_START).stdout != ""


def test_a_missing_scene_and_a_missing_robosuite_say_what_to_do(tmp_path: Path) -> None:
    missing = _run(_WITHOUT_ROBOSUITE + _START, TOTO_ROBOT_SCENES=str(tmp_path))
    assert "has no kuka_iiwa7_cabinet_real_lean.xml" in missing.stderr and "python -m envs.scene" in missing.stderr
    none = _run(_WITHOUT_ROBOSUITE + _START, TOTO_ROBOT_SCENES="")
    assert "pip install robosuite==1.5.2" in none.stderr and "TOTO_ROBOT_SCENES" in none.stderr


@pytest.mark.parametrize("robot", [PANDA, IIWA], ids=lambda robot: robot.name)
def test_limits_and_torques_are_those_of_robosuites_model_and_the_datasheet(robot: scene.Robot) -> None:
    world = "cabinet"
    model = scene.load_scene(robot.name, world, "real", "lean").model
    ranges = np.array([model.joint(name).range for name in robot.joints])
    assert ranges[:, 0] == pytest.approx(robot.low_rad, abs=1e-4)
    assert ranges[:, 1] == pytest.approx(robot.high_rad, abs=1e-4)
    forces = np.array([model.actuator(name).forcerange for name in robot.joints])
    assert forces[:, 1] == pytest.approx(robot.torque_nm) and forces[:, 0] == pytest.approx(-robot.torque_nm)


@pytest.mark.parametrize("robot", [PANDA, IIWA], ids=lambda robot: robot.name)
def test_fingers_close_in_parallel_and_meet(robot: scene.Robot) -> None:
    loaded = scene.load_scene(robot.name, "cabinet", "real", "lean")
    data, hand = mujoco.MjData(loaded.model), robot.gripper
    gaps = []
    for finger in np.linspace(hand.open, hand.closed, 5):
        data.qpos[loaded.joints[hand.joints[0]]] = finger
        data.qpos[loaded.joints[hand.joints[1]]] = hand.right_sign * finger
        for joint, factor in hand.ties:
            data.qpos[loaded.joints[joint]] = factor * finger
        mujoco.mj_kinematics(loaded.model, data)
        left, right = (data.xmat[body].reshape(3, 3) for body in loaded.finger_bodies)
        across = left[:, 2] if hand.name == "Robotiq140Gripper" else left[:, 1]
        facing = right[:, 2] if hand.name == "Robotiq140Gripper" else right[:, 1]
        assert abs(across @ facing) == pytest.approx(1.0, abs=1e-3)
        points = [data.xpos[body] + data.xmat[body].reshape(3, 3) @ hand.point_m for body in loaded.finger_bodies]
        gaps.append(float(np.linalg.norm(points[0] - points[1])))
    assert gaps[0] == pytest.approx(hand.stroke_m, abs=1e-3)
    assert gaps[-1] == pytest.approx(0.0, abs=1e-3)
    assert (np.diff(gaps) < 0).all()


def test_meshes_are_few_and_the_robot_never_meets_itself() -> None:
    for robot, world in scene.PAIRS:
        model = scene.load_scene(robot.name, world.name, "real", "lean").model
        assert model.mesh_facenum.sum() < 12_000
        arm = [i for i in range(model.ngeom) if model.geom_contype[i] == 1]
        assert arm and not any(model.geom_contype[i] & model.geom_conaffinity[j] for i in arm for j in arm)
