"""Does the arm get, from what a real one measures, the proprioception and the commands of the simulated task?"""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest

from deploy.task_interface import Measured, TaskInterface


def make(**settings):
    return gymnasium.make("toto_robot/FrankaPick-v0", obs_mode="proprio", **settings).unwrapped


def measured(env) -> Measured:
    q, dq = env.data.qpos, env.data.qvel
    return Measured(q[:7].copy(), dq[:7].copy(), float(q[7] + q[8]), float(dq[7] + dq[8]))


@pytest.mark.parametrize("seed", range(4))
def test_whole_expert_episodes_are_observed_and_commanded_alike(seed):
    env = make()
    observation, _ = env.reset(seed=seed)
    interface, expert = TaskInterface(env.task_spec.as_dict()), env.expert(seed=seed, noise=0.1)
    interface.reset(measured(env))
    for _ in range(env.task_spec.horizon_steps):
        now = measured(env)
        proprio = interface.proprio(now)
        # A hand reports its width, not two fingers; in contact the simulated ones differ by tenths of a millimetre.
        fingers = [7, 8, 16, 17]
        np.testing.assert_allclose(np.delete(proprio, fingers), np.delete(observation["proprio"], fingers), atol=1e-5)
        for pair in ([7, 8], [16, 17]):
            assert proprio[pair[0]] == pytest.approx(observation["proprio"][pair].mean(), abs=1e-5)
        action = expert.act().executed
        command = interface.apply(action, now)
        observation, _, terminated, truncated, info = env.step(action)
        np.testing.assert_allclose(command.q_rad, env.controller.q_rad, atol=1e-9)
        assert interface.finger_m == pytest.approx(env.controller.finger, abs=1e-9)
        assert command.gripper == pytest.approx(action[6])
        if terminated or truncated or info["success"]:
            break
    assert info["success"]


def test_joint_deltas_are_commanded_alike():
    env = make(action_mode="joint_delta")
    env.reset(seed=0)
    interface = TaskInterface(env.task_spec.as_dict())
    interface.reset(measured(env))
    random = np.random.default_rng(0)
    for _ in range(60):
        action, now = random.uniform(-1, 1, 8), measured(env)
        command = interface.apply(action, now)
        env.step(action)
        np.testing.assert_allclose(command.q_rad, env.controller.q_rad, atol=1e-9)
        assert interface.finger_m == pytest.approx(env.controller.finger, abs=1e-9)
        assert command.gripper == pytest.approx(1 - 50 * interface.finger_m)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"robot": "kuka_iiwa7"}, "kuka_iiwa7"),
        ({"action_mode": "torque"}, "torque"),
        ({"action_units": ("mm",) * 3 + ("rad",) * 3 + ("open -1 .. closed +1",)}, "mm"),
        ({"action_high": (2.0,) * 7}, "action_high"),
        ({"proprio_names": ("q1",)}, "proprioception"),
        ({"preset": "pixmc"}, "speed limits"),
    ],
)
def test_other_tasks_are_refused(change, word):
    task = {**make().task_spec.as_dict(), **change}
    with pytest.raises(ValueError, match=word):
        TaskInterface(task)


@pytest.mark.parametrize("action", [np.full(7, 1.5), np.array([np.nan, 0, 0, 0, 0, 0, 0]), np.zeros(8)])
def test_actions_outside_the_box_are_refused(action):
    env = make()
    env.reset(seed=0)
    interface = TaskInterface(env.task_spec.as_dict())
    interface.reset(measured(env))
    with pytest.raises(ValueError, match="expected an action"):
        interface.apply(action, measured(env))
