"""Do many environments in one process each show their own picture, and do the cameras show what they should?"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from collections.abc import Callable

import mujoco
import numpy as np
import pytest

from envs import render
from envs.task import RobotEnv

Make = Callable[..., RobotEnv]
pytestmark = pytest.mark.render


def _pixels(env: RobotEnv) -> np.ndarray:
    return np.stack(list(env.observation()["pixels"].values()))


def test_six_environments_show_what_each_shows_alone(make: Make) -> None:
    """Interleaved draws, other sizes and qualities, closed and collected neighbours: always the solo picture."""
    solo = []
    for seed in range(6):
        env = make(obs_mode="pixels", image_size=48)
        env.reset(seed=seed)
        env.step(np.full(7, 0.5))
        solo.append(_pixels(env))
        env.close()
        del env
    assert len({picture.tobytes() for picture in solo}) == 6
    envs = [make(obs_mode="pixels", image_size=48) for _ in range(6)]
    larger = make(obs_mode="pixels", image_size=100, preset="pixmc")  # another model, so another MjrContext
    for seed, env in enumerate(envs):
        env.reset(seed=seed)
        larger.reset(seed=seed)
        env.step(np.full(7, 0.5))
    order = [3, 0, 5, 1, 4, 2]
    for index in order:
        assert np.array_equal(_pixels(envs[index]), solo[index])
    for index in order[:3]:
        envs[index].close()
    larger.close()
    del larger
    gc.collect()
    for index in order[3:]:
        assert np.array_equal(_pixels(envs[index]), solo[index])


def test_other_gl_contexts_do_not_disturb(make: Make) -> None:
    env = make(obs_mode="pixels", image_size=48)
    env.reset(seed=0)
    before = _pixels(env)
    model = mujoco.MjModel.from_xml_string("<mujoco><worldbody><geom size='1'/></worldbody></mujoco>")
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    gl = type(render._device()._gl)(64, 64)  # a stranger with a context of the same kind, left current
    gl.make_current()
    stranger = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_50)
    assert np.array_equal(_pixels(env), before)
    gl.make_current()
    stranger.free()
    assert np.array_equal(_pixels(env), before)
    gl.make_current()
    gl.free()
    assert np.array_equal(_pixels(env), before)


def test_one_camera_alone_is_the_same_picture(make: Make) -> None:
    both, front, wrist = (make(obs_mode="pixels", cameras=c) for c in (("wrist", "front"), ("front",), "wrist"))
    for env in (both, front, wrist):
        env.reset(seed=2)
    pixels = both.observation()["pixels"]
    assert np.array_equal(pixels["front"], front.observation()["pixels"]["front"])
    assert np.array_equal(pixels["wrist"], wrist.observation()["pixels"]["wrist"])
    assert np.array_equal(pixels["wrist"], front.picture("wrist", 64))


def _blue(picture: np.ndarray) -> tuple[int, float, float]:
    """Return how many pixels show the cube, and their mean row and column."""
    signed = picture.astype(int)
    rows, columns = np.nonzero((signed[..., 2] > signed[..., 0] + 50) & (signed[..., 2] > 70))
    return len(rows), float(rows.mean()) if len(rows) else np.nan, float(columns.mean()) if len(rows) else np.nan


def test_front_camera_sees_the_cube_everywhere_it_can_be_and_the_right_way_round(make: Make) -> None:
    env = make(obs_mode="pixels", cameras=("front",))
    env.reset(seed=0)
    seen = {}
    qpos = env.data.qpos[env.scene.joints["cube"] :]
    for x, y, z in [(0.4, -0.2, 0.42), (0.4, 0.2, 0.42), (0.6, -0.2, 0.42), (0.6, 0.2, 0.42), (0.6, 0.0, 0.8)]:
        qpos[:3] = x, y, z
        mujoco.mj_kinematics(env.scene.model, env.data)
        count, row, column = seen[x, y, z] = _blue(env.observation()["pixels"]["front"])
        assert count >= 20, (x, y, z, count)
        assert 2 < row < 62 and 2 < column < 62
    assert seen[0.4, 0.2, 0.42][2] < seen[0.4, -0.2, 0.42][2] - 30, "the camera faces +x: +y is left"
    assert seen[0.6, 0.2, 0.42][1] < seen[0.4, 0.2, 0.42][1] - 10, "further away is higher up"
    assert seen[0.6, 0.0, 0.8][1] < 15, "a cube at the goal height is near the top"


def test_wrist_camera_sees_the_grasped_cube_between_the_fingers(make: Make) -> None:
    env = make(obs_mode="pixels", cameras=("wrist",))
    env.reset(seed=0)
    expert = env.expert(seed=0)
    for _ in range(env.preset.horizon_steps):
        action = expert.act()
        env.step(action.executed)
        if action.phase == "lift":
            break
    picture = env.observation()["pixels"]["wrist"]
    count, row, column = _blue(picture)
    assert count > 200
    assert row > 40, "the fingers, and so the cube, come in from below"
    assert abs(column - 31.5) < 3
    for finger in (picture[55, 8:12].astype(int), picture[55, 52:56].astype(int)):
        assert np.ptp(finger, axis=-1).max() < 15 and finger.mean() < 150, "dark grey fingers on both sides"


def test_render_shows_the_front_at_a_size_for_people(make: Make) -> None:
    env = make(obs_mode="state", render_mode="rgb_array")
    env.reset(seed=0)
    picture = env.render()
    assert picture.shape == (480, 480, 3) and picture.dtype == np.uint8
    assert _blue(picture)[0] > 500
    assert make(obs_mode="state").render() is None


def _run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {key: value for key, value in os.environ.items() if key not in ("MUJOCO_GL", "PYOPENGL_PLATFORM")}
    return subprocess.run(
        [sys.executable, "-c", code], env={**variables, **environment}, capture_output=True, text=True, check=False
    )


_ONE_FRAME = """
from envs.pick import make_franka_pick
env = make_franka_pick(obs_mode="pixels", image_size=16)
print(env.reset(seed=0)[0]["pixels"]["front"].mean() > 10)
"""


def test_both_backends_draw_and_exit_silently() -> None:
    import ctypes.util

    for backend, library in (("egl", "EGL"), ("osmesa", "OSMesa")):
        if ctypes.util.find_library(library) is not None:
            done = _run(_ONE_FRAME, MUJOCO_GL=backend)
            assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "True", ""), done.stderr


def test_a_missing_library_names_the_package() -> None:
    hide = "import ctypes.util; ctypes.util.find_library = lambda name: None\n"
    done = _run(hide + _ONE_FRAME)
    assert done.returncode == 1
    assert "libEGL, libGL not found" in done.stderr
    assert "apt-get install -y --no-install-recommends libegl1 libgl1" in done.stderr
    assert "MUJOCO_GL must be egl or osmesa" in _run(_ONE_FRAME, MUJOCO_GL="glfw").stderr


def test_fork_and_second_thread_are_refused_instead_of_hanging(make: Make) -> None:
    env = make(obs_mode="pixels", image_size=16)
    env.reset(seed=0)
    caught: list[str] = []

    def draw() -> None:
        """With an environment of its own, and with one that has drawn before."""
        for show in (lambda: make(obs_mode="pixels", image_size=16).reset(seed=0), env.observation):
            try:
                show()
            except RuntimeError as error:
                caught.append(str(error))

    thread = threading.Thread(target=draw)
    thread.start()
    thread.join()
    assert len(caught) == 2 and all("one thread" in each for each in caught)
    child = os.fork()
    if child == 0:
        caught.clear()
        draw()
        os._exit(0 if len(caught) == 2 and all("forkserver" in each for each in caught) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_full_pictures_are_asked_for_by_whoever_reads_the_specification(make: Make) -> None:
    full = make(obs_mode="pixels", image_size=16, render_quality="full").task_spec
    again = make(obs_mode="pixels", image_size=16, **(full.options or {})).task_spec
    assert again.options == full.options == {"render_quality": "full"} and again.scene_hash == full.scene_hash
    assert make(obs_mode="pixels", image_size=16).task_spec.options is None
