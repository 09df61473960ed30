"""Is the model that the emulated arm hands out, URDF or compiled library, that of the scene?"""

import ctypes
import shutil
from pathlib import Path

import mujoco
import numpy as np
import pytest

from deploy.emulator import robot_model
from deploy.emulator.plant import Plant
from deploy.realtime.limits import FER, FR3


@pytest.fixture(scope="module")
def plant() -> Plant:
    plant = Plant("toto_robot/FrankaPick-v0", {}, FER)
    plant.reset(3)
    plant.data.qvel[:7] = [0.5, -0.4, 0.3, 0.6, -0.7, 0.8, -0.9]
    mujoco.mj_step1(plant.model, plant.data)
    return plant


@pytest.fixture(scope="module")
def library(plant: Plant, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    if shutil.which("cc") is None and shutil.which("gcc") is None:
        pytest.skip("no C compiler: apt-get install gcc")
    path = tmp_path_factory.mktemp("model") / "model.so"
    path.write_bytes(robot_model.model_library(plant))
    return ctypes.CDLL(str(path))


def call(function, size: int, *arguments) -> np.ndarray:
    out = np.zeros(size)
    given = [
        ctypes.c_double(argument) if isinstance(argument, float) else np.ascontiguousarray(argument, float).ctypes
        for argument in arguments
    ]
    function(
        *[item if isinstance(item, ctypes.c_double) else item.data_as(ctypes.c_void_p) for item in given], out.ctypes
    )
    return out


def test_coriolis_gravity_and_mass_are_the_scenes(plant: Plant, library: ctypes.CDLL) -> None:
    mass, center, inertia = plant.hand_inertia()
    q, dq = plant.q_rad.copy(), plant.dq_rad_s.copy()
    library.c_NE.restype = library.g_NE.restype = library.M_NE.restype = None
    coriolis = call(library.c_NE, 7, q, dq, inertia.ravel(), mass, center)
    assert np.allclose(coriolis, plant.coriolis_nm, atol=1e-9)
    gravity = call(library.g_NE, 7, q, [0.0, 0.0, -9.81], mass, center)
    assert np.allclose(gravity, plant.gravity_nm, atol=1e-9)
    matrix = call(library.M_NE, 49, q, inertia.ravel(), mass, center).reshape(7, 7)
    scene = np.array([plant.inertia_times(unit) for unit in np.eye(7)])
    # The scene's joints have the inertia of motors besides.
    assert np.allclose(matrix, scene - np.diag(plant.model.dof_armature[:7]), atol=1e-9)


def test_every_symbol_that_libfranka_asks_for_is_there(library: ctypes.CDLL) -> None:
    for stem in ("O_T_J", "O_J_J", "Ji_J_J"):
        for frame in range(1, 10):
            assert getattr(library, f"{stem}{frame}")


def test_the_urdf_moves_and_weighs_like_the_scene(plant: Plant) -> None:
    model = mujoco.MjModel.from_xml_string(robot_model.urdf(plant, FR3).decode())
    assert model.nq == 7
    assert np.allclose(model.jnt_range[:, 0], FR3.low_end_rad)
    data = mujoco.MjData(model)
    data.qpos[:] = plant.q_rad
    mujoco.mj_forward(model, data)
    # MuJoCo melts the flange into link 7.
    pose = plant.pose()
    link = data.xpos[-1] + data.xmat[-1].reshape(3, 3) @ [0, 0, robot_model.FLANGE_M]
    assert np.allclose(link, pose[:3, 3], atol=1e-6)
    links = [plant.link_inertia(number)[0] for number in range(1, 8)]
    assert model.body_mass.sum() == pytest.approx(sum(links))


def test_without_a_compiler_it_says_what_to_install(
    plant: Plant, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(RuntimeError, match="apt-get install gcc"):
        robot_model.model_library(plant)
