"""Does a plan move as the simulated arm does, and does the policy's period keep to the robot's clock?"""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest

from deploy.robot_clock import RobotClock
from deploy.servo_model import LASTS_S, servo_path


def test_a_plan_follows_a_command_as_the_simulated_servo_does():
    env = gymnasium.make("toto_robot/FrankaPick-v0", obs_mode="proprio", action_mode="joint_delta").unwrapped
    env.reset(seed=0)
    start = env.data.qpos[:7].copy()
    action = np.array([0.5, -0.4, 0.3, 0.4, 0.6, -0.6, 0.6, 0.0])
    simulated = []
    for step in range(6):
        env.step(action if step == 0 else np.zeros(8))
        simulated.append(env.data.qpos[:7].copy())
    times_s, q, _ = servo_path(start, np.zeros(7), env.controller.q_rad)
    planned = np.stack([np.interp(0.05 * np.arange(1, 7), times_s, joint) for joint in q.T], axis=1)
    moved = np.abs(env.controller.q_rad - start)
    assert np.all(np.abs(planned - np.stack(simulated)) < 0.2 * moved.max()), planned - np.stack(simulated)
    np.testing.assert_allclose(q[-1], env.controller.q_rad, atol=0.03 * moved.max())


def test_a_plan_begins_where_it_is_told_and_ends_slowly():
    q0, dq0 = np.linspace(-1, 1, 7), np.full(7, 0.3)
    times_s, q, dq = servo_path(q0, dq0, q0 + 0.05)
    assert times_s[0] == 0.0 and times_s[-1] == pytest.approx(LASTS_S)
    np.testing.assert_array_equal(q[0], q0)
    np.testing.assert_array_equal(dq[0], dq0)
    np.testing.assert_allclose(np.diff(q, axis=0), 0.5 * (dq[1:] + dq[:-1]) * 0.01, atol=3e-4)
    assert np.abs(dq[-1]).max() < 0.1 * np.abs(dq[0]).max()


def test_the_robots_clock_is_measured_against_the_hosts():
    clock = RobotClock()
    for tick in range(200):  # an emulator on a busy host: 4 robot ms in 10
        clock.observe(10.0 + 0.01 * tick, 5.0 + 0.004 * tick)
    assert clock.rate == pytest.approx(0.4, rel=0.02)
    for tick in range(200):
        clock.observe(12.0 + 0.01 * tick, 5.8 + 0.01 * tick)
    assert clock.rate == pytest.approx(1.0)
    assert clock.observe(15.0, 0.0) == 0.0, "a robot that was restarted"
    clock.observe(15.5, 0.5)
    assert clock.rate == pytest.approx(1.0)
