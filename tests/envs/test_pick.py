"""Are reward, success and failure those of PixMC's FrankaPick?"""

from __future__ import annotations

from collections.abc import Callable

import mujoco
import numpy as np
import pytest

from envs.robots import PANDA
from envs.task import RobotEnv

Make = Callable[..., RobotEnv]


def _put_cube(env: RobotEnv, x: float, y: float, z: float) -> None:
    """Place the cube at rest; called before every step it stays there but for a step's fall."""
    address = env.scene.joints["cube"]
    env.data.qpos[address : address + 7] = (x, y, z, 1, 0, 0, 0)
    env.data.qvel[9:15] = 0.0
    mujoco.mj_kinematics(env.scene.model, env.data)


def test_start_covers_the_published_range_and_no_more(make: Make) -> None:
    env = make(obs_mode="state")
    cubes, arms, fingers = [], [], []
    for seed in range(300):
        env.reset(seed=seed)
        cubes.append(env.data.xpos[env.scene.bodies["cube"]].copy())
        arms.append(env.data.qpos[:7] - PANDA.start_rad)
        fingers.append(env.data.qpos[7:9].copy())
    low, high = np.min(cubes, axis=0), np.max(cubes, axis=0)
    assert low == pytest.approx([0.4, -0.2, 0.4225], abs=0.006) and (low >= [0.4, -0.2, 0.42]).all()
    assert high == pytest.approx([0.6, 0.2, 0.4225], abs=0.006) and (high <= [0.6, 0.2, 0.43]).all()
    assert np.abs(arms).max() <= 0.125 and (np.abs(arms).max(axis=0) > 0.12).all()
    assert np.min(fingers) == 0.0 and np.max(fingers) == 0.04 and (np.diff(fingers, axis=1) == 0).all()
    assert not env.data.qvel.any()


def test_reward_terms_by_hand(make: Make) -> None:
    env = make(obs_mode="state")
    env.reset(seed=0)
    action = np.array([1.0, -1.0, 0.5, 0.0, 0.0, 0.0, 1.0])
    left, right = env.observation()["state"][18:21], env.observation()["state"][21:24]

    def terms(x: float, y: float, z: float) -> dict[str, float]:
        _put_cube(env, x, y, z)
        return env.task.reward_terms(env.scene, env.data, action)

    low = terms(0.5, 0.1, 0.4225)
    for name, point in (("left_finger", left), ("right_finger", right)):
        distance = np.linalg.norm(np.array([0.5, 0.1, 0.4225]) - point)
        assert low[name] == pytest.approx(0.08 / (0.04 + distance), rel=1e-5)
    assert (low["lifted"], low["goal_distance"], low["goal_reached"]) == (0, 0, 0)
    assert low["action"] == pytest.approx(-0.01 * 3.25)
    assert terms(0.5, 0, 0.4225 + 0.0149)["lifted"] == 0.0
    lifted = terms(0.5, 0, 0.6)
    assert lifted["lifted"] == 2.0
    assert lifted["goal_distance"] == pytest.approx(1.28 / 0.24)
    goal = terms(0.5, 0, 0.77)
    assert goal["goal_reached"] == 2.0
    assert goal["goal_distance"] == pytest.approx(1.28 / 0.07)
    assert terms(*left.tolist())["left_finger"] == pytest.approx(0.08 / 0.06), "distances below 2 cm count as 2 cm"


def test_step_reward_is_the_sum_of_its_terms(make: Make) -> None:
    env = make(obs_mode="state")
    env.reset(seed=0)
    _, reward, _, _, info = env.step(np.full(7, 0.3))
    assert reward == pytest.approx(sum(info["reward_terms"].values()))
    assert info["reward_terms"]["action"] == pytest.approx(-0.01 * 7 * 0.09)


def test_success_needs_ten_steps_in_a_row_and_stays(make: Make) -> None:
    env = make(obs_mode="state")
    env.reset(seed=0)

    def steps(z: float, count: int) -> dict[str, bool]:
        for _ in range(count):
            _put_cube(env, 0.5, 0.0, z)
            info = env.step(np.zeros(7))[4]
        return info

    assert not steps(0.75, 9)["success"]
    assert not steps(0.60, 1)["success"], "below 0.7 m (the cube falls a centimetre in a step)"
    assert not steps(0.75, 9)["success"], "the count starts anew"
    info = steps(0.75, 1)
    assert info["success"] and info["success_at_end"]
    info = steps(0.5, 1)
    assert info["success"] and info["success_once"] and not info["success_at_end"]
    assert not env.reset(seed=1)[1]["success"]


def test_a_fallen_cube_ends_the_episode(make: Make) -> None:
    env = make(obs_mode="state")
    env.reset(seed=0)
    _put_cube(env, 0.0, 0.6, 0.41)
    assert env.step(np.zeros(7))[2:4] == (False, False)
    _put_cube(env, 0.0, 0.6, 0.37)
    assert env.step(np.zeros(7))[2:4] == (True, False)


def test_an_arm_link_on_the_table_ends_the_episode_but_fingers_may_touch(make: Make) -> None:
    env = make(obs_mode="state", action_mode="joint_delta")
    env.reset(seed=0)
    elbow_down = np.array([0.0, 1.0, 0.0, -0.3, 0.0, 0.0, 0.0, 0.0])
    ended = []
    for _ in range(80):
        *_, terminated, _, _ = env.step(elbow_down)
        ended.append(terminated)
        if terminated:
            break
    names = {env.scene.model.body(env.scene.model.geom_bodyid[g]).name for g in env.data.contact.geom.flat}
    assert ended[-1] and any(name.startswith("link") for name in names)

    env = make(obs_mode="state")
    env.reset(seed=0)
    expert = env.expert(seed=0)
    touched = False
    for _ in range(60):
        assert not env.step(expert.act().executed)[2]
        bodies = env.scene.model.geom_bodyid[env.data.contact.geom] if env.data.ncon else np.zeros((0, 2), int)
        touched |= bool(np.isin(bodies, env.scene.finger_bodies).any())
    assert touched


def test_the_arm_stays_in_place_without_action(make: Make) -> None:
    env = make(obs_mode="state", action_mode="joint_delta")
    env.reset(seed=0)
    start = env.data.qpos[:7].copy()
    for _ in range(40):
        env.step(np.zeros(8))
    assert env.data.qpos[:7] == pytest.approx(start, abs=2e-3)  # gravity is compensated
