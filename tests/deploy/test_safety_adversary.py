"""Does the safety filter keep every limit against every adversary, at every instant, and still follow?

The whole million: python tests/deploy/adversary.py 1000000.
"""

from __future__ import annotations

import numpy as np
import pytest
from adversary import NAMES, Judge, campaign, run

from deploy.realtime.braking import BrakingLimits, Motion, advance, stop_fits, stopping
from deploy.realtime.limits import FER, FR3, FR3_BEFORE_5_9, JointLimits, Margins
from deploy.realtime.records import Guard
from deploy.realtime.safety import Box, SafetyLimits, filter_target

REST_RAD = np.array([0.0, -0.7, 0.0, -2.0, 0.0, 1.5, 0.7])
ZERO = np.zeros(7)
DT_S = 0.005


def at_rest(q_rad: np.ndarray = REST_RAD) -> Motion:
    return Motion(q_rad, np.zeros_like(q_rad), np.zeros_like(q_rad))


@pytest.mark.parametrize("name", NAMES)
def test_no_adversary_gets_outside(name: str) -> None:
    judge = Judge()
    for who, robot, margins, seed in campaign(108, batch=1):
        if who == name:
            run(name, SafetyLimits(robot=robot, margins=margins), np.random.default_rng(seed), judge, 60, 48)
    assert not judge.outside(), judge.worst
    assert judge.worst["jerk"] > 0.99 and judge.worst["acceleration"] > 0.99  # they do reach for the limits


def test_the_judge_sees_a_command_that_is_outside() -> None:
    times = np.arange(-3, 40) * DT_S
    ramp = np.maximum(times, 0.0)
    for asked, name in ((2.2 * ramp, "velocity"), (8.0 * ramp**2, "acceleration"), (4000 * ramp**3, "jerk")):
        judge = Judge()
        judge.see(REST_RAD + np.repeat(asked[:, None, None], 7, axis=2) * [1, 0, 0, 0, 0, 0, 0], times, FER)
        assert name in judge.outside(), judge.worst
    judge = Judge()
    judge.see(np.repeat(FER.high_rad[None, None] + 1e-5, 43, axis=0), times, FER)
    assert judge.outside() == ["position"]


@pytest.mark.parametrize("robot", [FER, FR3, FR3_BEFORE_5_9], ids=lambda limits: limits.name)
def test_a_proved_stop_stays_inside_when_it_is_simulated_finely(robot: JointLimits) -> None:
    # Against the closed form and the hull: 0.5 ms steps of a simulation that only knows jerk.
    limits = SafetyLimits(robot=robot, margins=Margins(jerk=0.05))
    rng = np.random.default_rng(3)
    joint, braking = limits.joint, limits.braking
    q = rng.uniform(joint.low_rad, joint.high_rad, (1500, 7))
    v = rng.uniform(-1, 1, q.shape) * joint.velocity_rad_s
    motion = Motion(q, v, rng.uniform(-1, 1, q.shape) * joint.acceleration_rad_s2)
    proved = stop_fits(motion, braking)
    assert 0.2 < proved.mean() < 0.97
    for _ in range(1200):
        after = stopping(motion, braking, 5e-4)
        change = (after.ddq_rad_s2 - motion.ddq_rad_s2) / 5e-4
        assert (np.abs(change) <= joint.jerk_rad_s3 * (1 + 1e-6)).all()
        # Position follows from the accelerations: what the closed form says is what integration gives.
        middle = motion.q_rad + 5e-4 * motion.dq_rad_s + 2.5e-7 * (2 * motion.ddq_rad_s2 + after.ddq_rad_s2) / 6
        assert np.abs(middle - after.q_rad).max() < 2e-8  # a switch of the jerk inside a step
        motion = after
        slow, fast = joint.velocity_bounds(motion.q_rad)
        good = (motion.q_rad >= joint.low_rad) & (motion.q_rad <= joint.high_rad)
        good &= (motion.dq_rad_s >= slow - 1e-9) & (motion.dq_rad_s <= fast + 1e-9)
        assert good[proved].all()
    assert (motion.dq_rad_s == 0).all() and (motion.ddq_rad_s2 == 0).all()


def test_a_stop_that_is_not_proved_breaks_a_limit() -> None:
    # The other way round: the hull must not refuse what would be fine, or the arm would stand still.
    limits = SafetyLimits(robot=FER)
    joint, braking = limits.joint, limits.braking
    rng = np.random.default_rng(4)
    q = rng.uniform(joint.low_rad, joint.high_rad, (1500, 7))
    motion = Motion(q, rng.uniform(-1, 1, q.shape) * joint.velocity_rad_s, rng.uniform(-1, 1, q.shape) * 5)
    path = np.stack([stopping(motion, braking, t).q_rad for t in np.linspace(0, 1, 500)])
    speed = np.stack([stopping(motion, braking, t).dq_rad_s for t in np.linspace(0, 0.05, 100)])
    fine = ((path >= joint.low_rad) & (path <= joint.high_rad)).all(axis=0)
    fine &= (np.abs(speed) <= joint.velocity_rad_s).all(axis=0)
    refused = fine & ~stop_fits(motion, braking)
    assert refused.mean() < 0.01, refused.mean()


def follow(limits: SafetyLimits, path: np.ndarray, speed: np.ndarray, dt_s: float = DT_S) -> tuple[np.ndarray, int]:
    now, seen, guards = at_rest(path[0]), [], 0
    for q, dq in zip(path, speed, strict=True):
        now, acted = filter_target(now, (q, dq), now.q_rad, 0.0, limits, dt_s)
        seen.append(now.q_rad)
        guards |= int(acted)
    return np.stack(seen), guards


@pytest.mark.parametrize("dt_s", [0.005, 0.01])
def test_a_motion_inside_the_limits_is_followed_closely(dt_s: float) -> None:
    times = np.arange(0, 4, dt_s)[:, None]
    path = REST_RAD + 0.2 * (1 - np.cos(np.pi * times))
    speed = 0.2 * np.pi * np.sin(np.pi * times) * np.ones(7)
    seen, guards = follow(SafetyLimits(robot=FR3), path, speed, dt_s)
    assert np.abs(seen[:-1] - path[1:]).max() < 0.01  # a command is for the end of its tick
    assert guards == 0


def test_a_jump_is_reached_without_overshoot() -> None:
    path = np.repeat((REST_RAD + 0.2)[None], 200, axis=0)
    path[0] = REST_RAD
    seen, guards = follow(SafetyLimits(robot=FER), path, np.zeros_like(path))
    assert seen.max(axis=0) == pytest.approx(REST_RAD + 0.2, abs=1e-3)
    assert (np.abs(seen[120:] - path[120:]) < 2e-3).all()
    assert guards & (Guard.ACCELERATION | Guard.JERK)


def test_each_guard_says_that_it_acted() -> None:
    limits = SafetyLimits(robot=FER, margins=Margins(position_rad=0.1), step_rad=0.2)

    def acted(q: np.ndarray, dq: np.ndarray = ZERO, measured: np.ndarray = REST_RAD, age_s: float = 0.0) -> Guard:
        return Guard(int(filter_target(at_rest(), (q, dq), measured, age_s, limits, DT_S)[1]))

    assert acted(REST_RAD) == 0
    assert acted(REST_RAD * np.nan) == Guard.FINITE
    assert acted(REST_RAD, measured=REST_RAD + np.inf) == Guard.FINITE
    assert acted(REST_RAD, age_s=0.2) == acted(REST_RAD, age_s=np.nan) == acted(REST_RAD, age_s=-5.0) == Guard.FRESH
    assert Guard.RANGE in acted(REST_RAD + 4.0)
    assert Guard.RANGE in acted(REST_RAD, dq=np.full(7, 3.0))
    assert Guard.POSITION in acted(np.where(np.arange(7) == 0, FER.high_rad - 0.05, REST_RAD))
    assert Guard.STEP in acted(REST_RAD + 0.25)
    assert Guard.VELOCITY in acted(REST_RAD + 0.19, dq=np.full(7, 2.1))
    assert Guard.STOP not in acted(REST_RAD + 0.19)


def test_a_stop_is_a_ramp_to_rest() -> None:
    limits = SafetyLimits(robot=FER)
    now = at_rest()
    for _ in range(60):
        now, _ = filter_target(now, (now.q_rad + 1, np.full(7, 2.0)), now.q_rad, 0.0, limits, DT_S)
    assert (now.dq_rad_s > 0.9).all()
    ticks = 0
    while np.any(now.dq_rad_s):
        before = now
        now, guards = filter_target(now, (now.q_rad, ZERO), now.q_rad, np.inf, limits, DT_S)
        assert (now.dq_rad_s <= before.dq_rad_s).all() or ticks < 4  # acceleration has to fall first
        assert guards & Guard.FRESH
        ticks += 1
    assert ticks * DT_S < 0.45  # 2.1 rad/s at 80 % of the slowest joint's 7.5 rad/s2


def test_an_arm_that_leans_on_something_is_led_by_no_more_than_the_step() -> None:
    limits = SafetyLimits(robot=FER, step_rad=0.15)
    now = at_rest()
    for _ in range(400):
        now, _ = filter_target(now, (REST_RAD + 1, ZERO), REST_RAD, 0.0, limits, DT_S)
    np.testing.assert_allclose(now.q_rad, REST_RAD + 0.15, atol=1e-3)


def point(q_rad: np.ndarray) -> np.ndarray:
    """A planar arm of two links as a stand-in that can be checked by hand."""
    first, both = q_rad[..., 0], q_rad[..., 0] + q_rad[..., 2]
    x, y = 0.4 * np.cos(first) + 0.3 * np.cos(both), 0.4 * np.sin(first) + 0.3 * np.sin(both)
    return np.stack([x, y, 0.1 * q_rad[..., 4]], axis=-1)


def test_the_grasp_point_stays_in_the_box() -> None:
    box = Box(low_m=(0.2, -0.3, -0.1), high_m=(0.9, 0.3, 0.1))
    limits = SafetyLimits(robot=FER, box=box, grasp_point=point)
    rng = np.random.default_rng(5)
    now = at_rest(np.repeat(REST_RAD[None], 100, axis=0))
    worst, guards, travelled = 0.0, 0, 0.0
    for tick in range(400):
        if tick % 25 == 0:
            goal = REST_RAD + rng.uniform(-2, 2, (100, 7))
        now, acted = filter_target(now, (goal, np.zeros_like(goal)), now.q_rad, 0.0, limits, DT_S)
        worst = max(worst, float(box.excess_m(point(now.q_rad)).max()))
        guards |= int(np.bitwise_or.reduce(acted))
        travelled = max(travelled, float(np.abs(now.q_rad - REST_RAD).max()))
    assert guards & Guard.WORKSPACE and travelled > 0.5
    assert worst < 0.01, worst  # rest points are inside; the way of a stop bulges by millimetres


def test_an_arm_that_starts_outside_a_margin_moves_inwards_only() -> None:
    limits = SafetyLimits(robot=FER, margins=Margins(position_rad=0.1))
    start = REST_RAD.copy()
    start[3] = FER.high_rad[3] - 0.02
    inside = limits.starting_at(start)
    now = at_rest(start)
    for _ in range(50):
        now, _ = filter_target(now, (start + 0.05, ZERO), now.q_rad, 0.0, inside, DT_S)
    assert now.q_rad[3] <= start[3] + 1e-8
    for _ in range(200):
        now, _ = filter_target(now, (start - 0.2, ZERO), now.q_rad, 0.0, inside, DT_S)
    assert now.q_rad[3] == pytest.approx(start[3] - 0.2, abs=1e-3)
    start[3] = FER.high_rad[3] + 0.01
    with pytest.raises(ValueError, match="joint 4"):
        limits.starting_at(start)


@pytest.mark.parametrize("robot", [FER, FR3], ids=lambda limits: limits.name)
def test_what_is_widened_for_a_start_is_given_back_on_the_way_in(robot: JointLimits) -> None:
    """Every joint begins in its margin and is led in and out at random: the margin holds again once it is left."""
    limits = SafetyLimits(robot=robot)
    rng = np.random.default_rng(3)
    upper = rng.random(7) < 0.5
    soft = np.where(upper, limits.braking.high, limits.braking.low)
    hard = np.where(upper, *BrakingLimits(robot).sides * [[1], [-1]])
    start = 0.7 * hard + 0.3 * soft
    now, active, judge = at_rest(start), limits.starting_at(start), Judge()
    positions, been_in, farthest = [start] * 4, np.zeros(7, bool), np.full(7, -np.inf)
    for tick in range(3000):
        if tick % 60 == 0:
            goal = start + np.where(upper, -1, 1) * rng.uniform(-0.3, 0.5, 7)
        now, _ = filter_target(now, (goal, ZERO), now.q_rad, 0.0, active, DT_S)
        outside = np.where(upper, 1, -1) * (now.q_rad - soft)
        assert (outside[been_in] < 1e-6).all(), "back in the margin"
        been_in |= outside < -1e-3
        farthest = np.maximum(farthest, outside)
        if active is not limits:
            active = active.narrowed(now, limits)
            assert stop_fits(now, active.braking).all()
        positions.append(now.q_rad)
    assert been_in.all() and active is limits
    assert (farthest <= 0.7 * np.abs(hard - soft) + 1e-6).all()
    judge.see(np.array(positions)[:, None], DT_S * np.arange(-3, 3001), robot)
    assert not judge.outside(), judge.worst  # of the robot's own limits, the velocity that falls towards the ends too


def test_the_filter_is_pure_and_one_arm_is_a_batch_of_one() -> None:
    limits = SafetyLimits(robot=FR3)
    now = advance(at_rest(), np.full(7, 300.0), 0.01)
    target, speed = REST_RAD + 0.1, np.full(7, 0.4)
    inputs = [array.copy() for array in (*now, target, speed)]
    one, guards = filter_target(now, (target, speed), REST_RAD, 0.0, limits, DT_S)
    again, _ = filter_target(now, (target, speed), REST_RAD, 0.0, limits, DT_S)
    batch, many = filter_target(
        Motion(*(part[None] for part in now)), (target[None], speed[None]), REST_RAD[None], np.zeros(1), limits, DT_S
    )
    for a, b, c in zip(one, again, batch, strict=True):
        assert (a == b).all() and (a == c[0]).all()
    assert int(guards) == int(many[0])
    assert all((a == b).all() for a, b in zip(inputs, (*now, target, speed), strict=True))


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="step_rad"):
        SafetyLimits(robot=FER, step_rad=0.0)
    with pytest.raises(ValueError, match="max_age_s"):
        SafetyLimits(robot=FER, max_age_s=np.inf)
    with pytest.raises(ValueError, match="grasp_point"):
        SafetyLimits(robot=FER, box=Box(low_m=(0, 0, 0), high_m=(1, 1, 1)))
    with pytest.raises(ValueError, match="low_m < high_m"):
        Box(low_m=(0, 0, 0), high_m=(1, 1, 0))
    for dt_s in (0.0, -0.005, np.nan, 0.2):
        with pytest.raises(ValueError, match="time step"):
            filter_target(at_rest(), (REST_RAD, ZERO), REST_RAD, 0.0, SafetyLimits(robot=FER), dt_s)
