"""Are start, reward and success those of PixMC's cabinet tasks, and does the drawer behave like one?"""

from __future__ import annotations

from collections.abc import Callable

import mujoco
import numpy as np
import pytest

from envs.drawer import drawer_opening_m, handle_point
from envs.hand import finger_points
from envs.task import RobotEnv

Make = Callable[..., RobotEnv]
TASKS = ("FrankaCabinet", "KukaCabinet")


def _open_drawer(env: RobotEnv, opening_m: float) -> None:
    """Put the drawer somewhere, at rest."""
    env.data.qpos[env.scene.joints["drawer"]] = opening_m
    env.data.qvel[:] = 0.0
    mujoco.mj_kinematics(env.scene.model, env.data)


@pytest.mark.parametrize("task", TASKS)
def test_start_covers_the_published_range_and_no_more(make: Make, task: str) -> None:
    env = make(task, obs_mode="state")
    handles, arms = [], []
    for seed in range(200):
        env.reset(seed=seed)
        handles.append(handle_point(env.scene, env.data).copy())
        arms.append(env.data.qpos[:7] - env.scene.robot.start_rad)
    middle = np.sum([[0.05, 0, 0.45], [0.0515, 0, 0.3172], [0.305, 0, 0.01]], axis=0)
    spread = np.array([0.075, 0.075, 0.05])
    low, high = np.min(handles, axis=0), np.max(handles, axis=0)
    assert low == pytest.approx(middle - spread, abs=0.004)
    assert high == pytest.approx(middle + spread, abs=0.004)
    assert (low >= middle - spread - 1e-6).all() and (high <= middle + spread + 1e-6).all()
    assert np.abs(arms).max() <= 0.125
    assert drawer_opening_m(env.scene, env.data) == 0.0


@pytest.mark.parametrize("task", TASKS)
def test_boxes_lie_in_the_drawer_and_come_with_it(make: Make, task: str) -> None:
    env = make(task, obs_mode="state")
    env.reset(seed=3)
    expert = env.expert(seed=3)
    names = [f"prop{i}" for i in range(4)]

    def in_drawer() -> np.ndarray:
        drawer = env.data.xpos[env.scene.bodies["drawer"]]
        return np.array([env.data.xpos[env.scene.bodies[name]] - drawer for name in names])

    before = in_drawer()
    assert np.abs(before[:, :2]) == pytest.approx(np.full((4, 2), 0.045), abs=1e-6)
    for _ in range(env.preset.horizon_steps):
        if env.step(expert.act().executed)[4]["success"]:
            break
    assert drawer_opening_m(env.scene, env.data) >= 0.32
    assert np.abs(in_drawer() - before).max() < 0.15, "no box has left the drawer"


def test_reward_terms_by_hand(make: Make) -> None:
    env = make("FrankaCabinet", obs_mode="state")
    env.reset(seed=0)
    action = np.array([1.0, -1.0, 0.5, 0.0, 0.0, 0.0, 1.0])
    _open_drawer(env, 0.25)
    left, right = finger_points(env.scene, env.data)
    handle = handle_point(env.scene, env.data)
    terms = env.task.reward_terms(env.scene, env.data, action)
    for name, point in (("left_finger", left), ("right_finger", right)):
        assert terms[name] == pytest.approx(0.06 / (0.016 + np.linalg.norm(handle - point)))
    assert terms["opened"] == 1.0
    assert terms["opening"] == pytest.approx(1.5)
    assert terms["open"] == 0.0
    assert terms["held_opening"] == 0.0, "the hand is far"
    assert terms["action"] == pytest.approx(-0.0325)
    _open_drawer(env, 0.305)
    assert env.task.reward_terms(env.scene, env.data, action)["open"] == 1.0
    _open_drawer(env, 0.005)
    assert env.task.reward_terms(env.scene, env.data, action)["opened"] == 0.0


def test_holding_terms_while_the_expert_pulls(make: Make) -> None:
    env = make("FrankaCabinet", obs_mode="state")
    env.reset(seed=0)
    expert = env.expert(seed=0)
    seen = False
    for _ in range(env.preset.horizon_steps):
        action = expert.act()
        *_, info = env.step(action.executed)
        terms = info["reward_terms"]
        if action.phase == "pull" and terms["around_handle"] and terms["held_opening"]:
            seen = True
            assert terms["around_handle"] == 0.5
            assert terms["held_opening"] == pytest.approx(3.0 * drawer_opening_m(env.scene, env.data))
        if info["success"]:
            break
    assert seen and info["success"]


def test_franka_must_hold_the_handle_and_kuka_need_not(make: Make) -> None:
    """As in PixMC's code, whatever its text says."""
    for task, counts in (("FrankaCabinet", False), ("KukaCabinet", True)):
        env = make(task, obs_mode="state")
        env.reset(seed=0)
        for _ in range(11):
            _open_drawer(env, 0.37)
            info = env.step(np.zeros(7))[4]
        assert info["success"] is counts


def test_the_drawer_stops_at_its_ends_and_slides_when_pushed(make: Make) -> None:
    env = make("KukaCabinet", obs_mode="state")
    env.reset(seed=0)
    dof = env.scene.model.joint("drawer").dofadr[0]
    for force, end in ((40.0, 0.4), (-40.0, 0.0)):
        env.data.qfrc_applied[dof] = force
        for _ in range(40):
            env.step(np.zeros(7))
        assert env.data.qpos[env.scene.joints["drawer"]] == pytest.approx(end, abs=0.01)


def test_an_arm_link_on_the_cabinet_ends_the_episode(make: Make) -> None:
    env = make("FrankaCabinet", obs_mode="state", action_mode="joint_delta")
    env.reset(seed=0)
    forward = np.zeros(8)
    forward[[0, 1, 3]] = -1.0, 1.0, 0.6  # turn to the front and stretch
    ended = False
    for _ in range(80):
        ended = env.step(forward)[2]
        if ended:
            break
    assert ended
