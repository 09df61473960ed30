"""Does the environment keep gymnasium's contract, and does it say clearly what is wrong?"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from envs.robots import PANDA
from envs.task import RobotEnv
from tests.envs.conftest import TASKS

Make = Callable[..., RobotEnv]


@pytest.mark.render
@pytest.mark.filterwarnings("ignore:.*Box observation space (minimum|maximum).*:UserWarning")
@pytest.mark.parametrize(
    "options",
    [
        {"obs_mode": "all", "render_mode": "rgb_array"},
        {"obs_mode": "state", "action_mode": "joint_delta", "preset": "pixmc"},
        {"obs_mode": "proprio"},
    ],
)
def test_gymnasium_checker_passes(make: Make, options: dict[str, str]) -> None:
    check_env(make(**options))


@pytest.mark.render
@pytest.mark.filterwarnings("ignore:.*Box observation space (minimum|maximum).*:UserWarning")
@pytest.mark.parametrize("task", TASKS)
def test_gymnasium_checker_passes_for_every_task(make: Make, task: str) -> None:
    check_env(make(task, obs_mode="all", render_mode="rgb_array", image_size=32))


@pytest.mark.parametrize("task", TASKS)
def test_both_robots_have_one_layout(make: Make, task: str) -> None:
    env = make(task, obs_mode="state")
    observation, _ = env.reset(seed=0)
    assert observation["proprio"].shape == (27,) and observation["state"].shape == (34,)
    assert np.abs(observation["proprio"][:9]).max() <= 1.0
    assert env.task_spec.robot == ("franka_panda" if task.startswith("Franka") else "kuka_iiwa7")
    assert ("m/s" in env.task_spec.proprio_units[16]) == task.startswith("Franka")


def test_found_without_importing_us() -> None:
    """The installed entry point registers the id; stepping imports no torch, no robosuite, no room above."""
    code = """
import sys, gymnasium
env = gymnasium.make("toto_robot/FrankaPick-v0")
env.reset(seed=0)
env.step(env.action_space.sample())
assert not {"torch", "robosuite", "toto_robot", "policies"} & set(sys.modules), sorted(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    entries = metadata.entry_points(group="gymnasium.envs", name="toto_robot")
    assert [entry.value for entry in entries] == ["envs.registration:register_envs"]


def test_module_prefix_registers() -> None:
    env = gymnasium.make("envs.registration:toto_robot/FrankaPick-v0", obs_mode="proprio")
    assert env.unwrapped.task_spec.env_id == "toto_robot/FrankaPick-v0"  # type: ignore[attr-defined]


def test_task_spec_describes_what_comes_out(make: Make) -> None:
    for mode, entries in (("ee_delta", 7), ("joint_delta", 8)):
        env = make(obs_mode="state", action_mode=mode)
        observation, _ = env.reset(seed=0)
        spec = env.task_spec
        assert len(spec.action_names) == len(spec.action_units) == len(spec.action_scale) == entries
        assert env.action_space.shape == (entries,)
        assert len(spec.proprio_names) == len(spec.proprio_units) == len(observation["proprio"]) == 27
        assert observation["state"].shape == (34,)
        assert json.loads(json.dumps(spec.as_dict()))["action_names"] == list(spec.action_names)
    assert (spec.control_rate_hz, spec.horizon_steps) == (20, 166)
    assert make(preset="pixmc").task_spec.horizon_steps == 500
    assert make(preset="pixmc").task_spec.scene_hash != spec.scene_hash


def test_proprio_and_state_hold_what_their_names_say(make: Make) -> None:
    env = make(obs_mode="state")
    observation, _ = env.reset(seed=3)
    for _ in range(5):
        observation = env.step(np.array([0.3, -0.5, 0.2, 0.1, 0.6, -0.2, 1.0]))[0]
    proprio = dict(zip(env.task_spec.proprio_names, observation["proprio"], strict=True))
    q_rad = env.data.qpos[:7]
    q3 = (proprio["q3_scaled"] + 1) / 2 * (PANDA.high_rad[2] - PANDA.low_rad[2]) + PANDA.low_rad[2]
    assert q3 == pytest.approx(q_rad[2], abs=1e-6)
    assert proprio["q5_speed"] == pytest.approx(0.1 * env.data.qvel[4], abs=1e-6)
    assert 0.02 * (proprio["finger_left_scaled"] + 1) == pytest.approx(env.data.qpos[7], abs=1e-6)
    # The robot stands at x = 1 and faces -x, so its base frame is the world's turned by half a turn.
    site = env.data.site_xpos[env.scene.hand_site]
    assert [proprio[f"hand_{a}"] for a in "xyz"] == pytest.approx([1 - site[0], -site[1], site[2]], abs=1e-6)
    state = observation["state"]
    assert state[:18] == pytest.approx(observation["proprio"][:18])
    cube = env.data.xpos[env.scene.bodies["cube"]]
    assert state[24:27] == pytest.approx(cube, abs=1e-6)
    assert state[27:30] == pytest.approx(cube - state[18:21], abs=1e-6)
    assert state[33] == pytest.approx(0.8 - cube[2], abs=1e-6)


def test_time_limit_truncates_and_does_not_terminate(make: Make) -> None:
    env = make(obs_mode="proprio")
    env.reset(seed=0)
    ends = [env.step(np.zeros(7))[2:4] for _ in range(166)]
    assert ends[:-1] == [(False, False)] * 165
    assert ends[-1] == (False, True)


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (np.zeros(6), r"shape \(7,\).*got \(6,\)"),
        (np.full(7, np.nan), r"\[-1, 1\]"),
        (np.array([0, 0, 0, 0, 0, 0, 1.01]), r"\[-1, 1\]"),
        (np.array([0, -np.inf, 0, 0, 0, 0, 0]), r"\[-1, 1\]"),
    ],
)
def test_bad_actions_are_refused(make: Make, action: np.ndarray, message: str) -> None:
    env = make(obs_mode="proprio")
    env.reset(seed=0)
    before = env.simulator_state()
    with pytest.raises(ValueError, match=message):
        env.step(action)
    assert np.array_equal(env.simulator_state(), before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"obs_mode": "image"}, "obs_mode must be one of state, proprio, pixels, all, got 'image'"),
        ({"action_mode": "torque"}, "action_mode must be one of"),
        ({"preset": "fast"}, "preset must be one of real, pixmc"),
        ({"render_quality": "best"}, "render_quality must be one of"),
        ({"render_mode": "human"}, "render_mode"),
        ({"cameras": ("side",)}, "camera must be one of front, wrist, got 'side'"),
        ({"cameras": ("front", "front")}, "each camera once"),
        ({"cameras": ()}, "each camera once"),
        ({"image_size": 4}, "image_size"),
        ({"image_size": 64.0}, "image_size"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], message: str) -> None:
    from envs.pick import make_franka_pick

    with pytest.raises(ValueError, match=message):
        make_franka_pick(**options)
