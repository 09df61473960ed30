"""Do actions move the arm by what they say, within the real arm's limits, and without winding up?"""

from __future__ import annotations

from collections.abc import Callable

import mujoco
import numpy as np
import pytest

from envs import specs
from envs.robots import PANDA
from envs.task import RobotEnv

Make = Callable[..., RobotEnv]


def _ready(env: RobotEnv) -> None:
    """Hold the gripper straight down above the table."""
    env.reset(seed=0)
    env.data.qpos[:9] = [0.0, -0.4, 0.0, -2.0, 0.0, 1.6, 0.785, 0.04, 0.04]
    mujoco.mj_kinematics(env.scene.model, env.data)
    mujoco.mj_comPos(env.scene.model, env.data)
    env.controller.reset(env.data)


@pytest.mark.parametrize("axis", range(3))
def test_translation_is_along_the_base_axes(make: Make, axis: int) -> None:
    env = make(obs_mode="proprio")
    _ready(env)
    start, rotation = env.hand_pose()
    action = np.zeros(7)
    action[axis], action[6] = 0.5, -1.0
    for _ in range(10):
        env.step(action)
    for _ in range(8):
        env.step(np.array([0, 0, 0, 0, 0, 0, -1.0]))
    moved, turned = env.hand_pose()
    expected = np.zeros(3)
    expected[axis] = 10 * 0.5 * env.preset.translation_scale_m
    assert moved - start == pytest.approx(expected, abs=0.01)
    assert np.trace(turned @ rotation.T) == pytest.approx(3.0, abs=0.01)


@pytest.mark.parametrize("axis", range(3))
def test_rotation_is_about_the_base_axes(make: Make, axis: int) -> None:
    env = make(obs_mode="proprio")
    _ready(env)
    start, rotation = env.hand_pose()
    action = np.zeros(7)
    action[3 + axis] = 0.5
    for _ in range(8):
        env.step(action)
    for _ in range(8):
        env.step(np.zeros(7))
    position, turned = env.hand_pose()
    quaternion, vector = np.zeros(4), np.zeros(3)
    mujoco.mju_mat2Quat(quaternion, (turned @ rotation.T).reshape(9))
    mujoco.mju_quat2Vel(vector, quaternion, 1.0)
    expected = np.zeros(3)
    expected[axis] = 8 * 0.5 * env.preset.rotation_scale_rad
    assert vector == pytest.approx(expected, abs=0.03)
    assert position == pytest.approx(start, abs=0.012)


def test_gripper_is_absolute_and_as_fast_as_the_real_hand(make: Make) -> None:
    env = make(obs_mode="proprio")
    _ready(env)
    openings = []
    for _ in range(24):
        env.step(np.array([0, 0, 0, 0, 0, 0, 1.0]))
        openings.append(env.data.qpos[7])
    assert openings[-1] < 0.001
    assert np.abs(np.diff(openings)).max() < 1.3 * PANDA.gripper.speed / 20
    for _ in range(12):
        env.step(np.zeros(7))
    assert env.data.qpos[7:9] == pytest.approx([0.02, 0.02], abs=0.001)


@pytest.mark.parametrize("mode", specs.ACTION_MODES)
def test_real_preset_keeps_the_arms_speed_and_joint_limits(make: Make, mode: str) -> None:
    """The command always; the arm too, but for the wrist when all joints reverse at once (a neighbour's push)."""
    env = make(obs_mode="proprio", action_mode=mode)
    random = np.random.default_rng(0)
    fastest = np.zeros(7)
    for seed in range(8):
        env.reset(seed=seed)
        for step in range(60):
            if step % 12 == 0:
                action = np.sign(random.standard_normal(env.action_space.shape))
            before = env.controller.q_rad
            lead_rad = env.data.qpos[:7] - before  # the servo gives way when the arm is held back, which is no command
            if env.step(action)[2]:
                break
            command = np.abs(env.controller.q_rad - before) - np.abs(lead_rad)
            assert (command <= PANDA.speed_rad_s / 20 + 1e-9).all()
            assert (env.controller.q_rad >= PANDA.low_rad).all()
            assert (env.controller.q_rad <= PANDA.high_rad).all()
            fastest = np.maximum(fastest, np.abs(env.data.qvel[:7]) / PANDA.speed_rad_s)
    assert fastest.max() > 0.5
    assert fastest[:4].max() <= 1.0
    if mode == "ee_delta":
        assert fastest.max() <= 1.0


def test_pushing_an_obstacle_does_not_wind_up(make: Make) -> None:
    env = make(obs_mode="proprio")
    _ready(env)
    down, up = np.array([0, 0, -1.0, 0, 0, 0, 1.0]), np.array([0, 0, 1.0, 0, 0, 0, 1.0])
    for _ in range(20):
        env.step(down)
    lowest = env.hand_pose()[0][2]
    assert 0.39 < lowest < 0.43, "the fingers stand on the table"
    assert np.abs(env.controller.q_rad - env.data.qpos[:7]).max() < 0.2  # twelve steps of pushing asked for 0.24 m
    for _ in range(8):
        env.step(up)
    assert env.hand_pose()[0][2] > lowest + 0.03


def test_pixmc_integrates_joint_targets(make: Make) -> None:
    env = make(obs_mode="proprio", action_mode="joint_delta", preset="pixmc")
    env.reset(seed=0)
    target = env.data.qpos[:7].copy()
    finger = float(env.data.qpos[7])
    for action in np.random.default_rng(1).uniform(-1, 1, (30, 8)):
        env.step(action)
        target = np.clip(target + 0.125 * action[:7], PANDA.low_rad, PANDA.high_rad)
        finger = float(np.clip(finger + 0.0125 * action[7], 0.0, 0.04))
        assert env.data.ctrl[:7] == pytest.approx(target)
        assert env.data.ctrl[7:9] == pytest.approx([finger, finger])
