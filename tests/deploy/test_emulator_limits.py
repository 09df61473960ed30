"""Does the emulated arm enforce what the robot enforces, under the robot's names, and nothing else?"""

from collections.abc import Callable

import numpy as np
import pytest

from deploy.emulator.arm import Arm
from deploy.emulator.events import EventLog
from deploy.emulator.motion import MAX_MISSES
from deploy.emulator.plant import DT_S, Plant
from deploy.emulator.protocol import COLLISION, V5, V10, Command, Controller, Generator, MoveStatus, RobotMode, Version
from deploy.realtime.limits import FER, FR3, JointLimits


class Robot:
    """An arm and a client in one process, one cycle at a time."""

    def __init__(self, plant: Plant, version: Version = V10, limits: JointLimits = FR3) -> None:
        plant.reset(2)
        self.limits, self.version, self.plant = limits, version, plant
        self.events = EventLog(None, lambda: 0)
        self.arm = Arm(version, plant, limits, self.events, b"")

    def start(self, generator: Generator, controller: Controller = Controller.JOINT_IMPEDANCE, **more) -> bytes:
        request = np.zeros(1, self.version.move)
        request["generator"], request["controller"] = generator, controller
        for name, value in more.items():
            request[name] = value
        answer = self.arm.request(self.version.commands.index(Command.MOVE), 1, request.tobytes())
        assert answer is not None
        return answer

    def send(self, **values) -> None:
        command = np.zeros(1, self.version.command)
        for name, value in values.items():
            command[name] = value
        self.arm.advance(command[0])

    @property
    def errors(self) -> set[str]:
        return self.arm.errors


@pytest.fixture(scope="module")
def plant() -> Plant:
    return Plant("toto_robot/FrankaPick-v0", {}, FR3)


@pytest.fixture
def robot(plant: Plant) -> Robot:
    return Robot(plant)


def velocity_profile(robot: Robot, profile: Callable[[int], float], cycles: int) -> set[str]:
    """Command joint 7's velocity, rad/s, cycle by cycle; return the errors."""
    assert robot.start(Generator.JOINT_VELOCITY) == V10.status_byte(MoveStatus.MOTION_STARTED)
    for cycle in range(cycles):
        robot.send(dq_c=profile(cycle) * np.eye(7)[6])
        if robot.errors:
            break
    return robot.errors


def smooth(cycle: int, cycles: int, end: float) -> float:
    part = min(cycle / cycles, 1.0)
    return end * part**2 * (3 - 2 * part)


def test_a_motion_within_all_limits_goes_on(robot: Robot) -> None:
    assert not velocity_profile(robot, lambda cycle: smooth(cycle, 300, 1.0), 600)
    assert robot.arm.mode == RobotMode.MOVE


@pytest.mark.parametrize(
    ("error", "profile"),
    [
        ("joint_motion_generator_velocity_discontinuity", lambda cycle: 0.1 * (cycle > 3)),
        ("joint_motion_generator_acceleration_discontinuity", lambda cycle: 8e-3 * max(0, cycle - 3)),
        ("joint_motion_generator_velocity_limits_violation", lambda cycle: smooth(cycle, 1500, 6.0)),
    ],
)
def test_velocity_commands_outside_a_limit(robot: Robot, error: str, profile: Callable[[int], float]) -> None:
    robot.arm.desired.q[6] = -2.9  # room to accelerate
    robot.plant.data.qpos[6] = -2.9
    assert velocity_profile(robot, profile, 2000) == {error}
    assert robot.arm.mode == RobotMode.REFLEX
    assert robot.arm.replies.popleft() == (1, 1, V10.status_byte(MoveStatus.REFLEX_ABORTED))


def test_positions_beyond_the_range(robot: Robot) -> None:
    robot.start(Generator.JOINT_POSITION)
    robot.send(q_c=FR3.high_rad + 0.001)
    assert robot.errors == {"joint_motion_generator_position_limits_violation"}


def test_limits_differ_between_robots(plant: Plant) -> None:
    """An FER takes 15 rad/s2 on its first joint, an FR3 10."""
    for version, limits, taken in ((V5, FER, True), (V10, FR3, False)):
        robot = Robot(plant, version, limits)
        robot.start(Generator.JOINT_VELOCITY)
        for cycle in range(20):
            acceleration = min(13.0, 4.0 * cycle)
            robot.send(dq_c=(robot.arm.desired.dq[0] + DT_S * acceleration) * np.eye(7)[0])
        assert (not robot.errors) == taken


@pytest.mark.parametrize(
    ("error", "torque"),
    [
        ("controller_torque_discontinuity", lambda cycle: 1.5 * (cycle > 3)),
        ("joint_velocity_violation", lambda cycle: min(0.5 * cycle, 11.0)),
    ],
)
def test_torque_commands_outside_a_limit(robot: Robot, error: str, torque: Callable[[int], float]) -> None:
    robot.plant.data.qpos[6] = -2.9
    robot.start(Generator.NONE, Controller.EXTERNAL)
    for cycle in range(2000):
        robot.send(tau_J_d=torque(cycle) * np.eye(7)[6])
        if robot.errors:
            break
    assert robot.errors == {error}


def test_motors_give_no_more_than_their_rating(robot: Robot) -> None:
    robot.start(Generator.NONE, Controller.EXTERNAL)
    for cycle in range(20):
        robot.send(tau_J_d=0.9 * cycle * np.eye(7)[4])
        assert np.abs(robot.arm.torque + robot.plant.gravity_nm)[4] <= 12.0 + 0.1  # gravity has moved on by a cycle
    assert not robot.errors
    assert [event["event"] for event in robot.events.since(0)].count("torque_saturated") == 1


def test_measured_positions_beyond_the_range(robot: Robot) -> None:
    robot.start(Generator.NONE, Controller.EXTERNAL)
    robot.send()
    robot.plant.data.qpos[3] = FR3.low_rad[3] - 0.01
    robot.send()
    assert robot.errors == {"joint_position_limits_violation"}


def test_a_nan_is_an_error_not_a_motion(robot: Robot) -> None:
    robot.start(Generator.JOINT_POSITION)
    robot.send(q_c=np.nan)
    assert robot.arm.mode == RobotMode.REFLEX
    assert np.isfinite(robot.plant.q_rad).all()


def test_lost_cycles_continue_at_constant_acceleration(robot: Robot) -> None:
    robot.start(Generator.JOINT_VELOCITY)
    for cycle in range(30):
        robot.send(dq_c=smooth(cycle, 300, 1.0) * np.eye(7)[6])
    desired = robot.arm.desired
    velocity, acceleration, missed = desired.dq[6], desired.ddq[6], MAX_MISSES - 1
    for _ in range(missed):
        robot.arm.advance(None)
    assert acceleration > 0.1
    assert robot.arm.desired.dq[6] == pytest.approx(velocity + missed * DT_S * acceleration)
    assert robot.arm.success_rate == pytest.approx(0.81)
    assert not robot.errors
    robot.arm.advance(None)
    assert robot.errors == {"communication_constraints_violation"}


def test_a_reflex_ends_at_rest_within_the_limits(robot: Robot) -> None:
    robot.start(Generator.JOINT_VELOCITY)
    for cycle in range(400):
        robot.send(dq_c=smooth(cycle, 300, 1.0) * np.eye(7)[6])
    robot.arm.reflex("joint_reflex")
    for _ in range(500):
        robot.arm.advance(None)
        assert np.abs(robot.arm.desired.ddq).max() <= 10.0
    assert np.abs(robot.plant.dq_rad_s).max() < 1e-3
    assert robot.start(Generator.JOINT_VELOCITY) == V10.status_byte(MoveStatus.NOT_POSSIBLE)


def test_collision_thresholds_are_the_clients(robot: Robot) -> None:
    thresholds = np.zeros(1, COLLISION)
    for name in COLLISION.names or ():
        thresholds[name] = 5.0 if name.startswith("force") else 100.0
    for threshold, reflex in ((5.0, set()), (3.0, {"cartesian_reflex"})):
        robot = Robot(robot.plant)
        thresholds["force_upper_nominal"] = threshold
        robot.arm.request(V10.commands.index(Command.SET_COLLISION_BEHAVIOR), 1, thresholds.tobytes())
        robot.start(Generator.JOINT_VELOCITY)
        robot.plant.push_n_nm[:3] = 0, 0, -4.0
        for _ in range(300):
            robot.send()
        assert robot.errors == reflex


def test_a_table_in_the_way_is_a_collision(robot: Robot) -> None:
    """Contact forces, not a fault, end this motion: the second joint drives the hand into the table."""
    robot.start(Generator.JOINT_VELOCITY)
    for cycle in range(3000):
        robot.send(dq_c=smooth(cycle, 300, 0.5) * np.eye(7)[1])
        if robot.errors:
            break
    assert robot.errors <= {"joint_reflex", "cartesian_reflex"} and robot.errors
    assert robot.plant.data.ncon > 0


def test_asynchronous_targets_are_reached_within_the_velocities_asked_for(robot: Robot) -> None:
    robot.start(Generator.JOINT_POSITION, asynchronous=1, max_velocity=0.5)
    target = robot.plant.q_rad + np.array([0.3, 0.1, -0.2, 0.1, 0.0, 0.05, -0.3])
    fastest = 0.0
    for cycle in range(1500):
        if cycle % 50 == 0:
            robot.send(q_c=target)
        else:
            robot.arm.advance(None)
        fastest = max(fastest, float(np.abs(robot.arm.desired.dq).max()))
        assert np.abs(robot.arm.desired.ddq).max() <= 10.0
    assert not robot.errors
    assert 0.45 < fastest <= 0.5 + 1e-9
    assert np.allclose(robot.arm.desired.q, target, atol=1e-5)
    robot.send(motion_finished=1)
    assert robot.arm.mode == RobotMode.IDLE
    assert np.allclose(robot.arm.desired.q, target, atol=1e-5)


def test_guiding_gives_way_to_a_hand(robot: Robot) -> None:
    target = robot.plant.q_rad + 0.2
    robot.arm.guiding(True)
    assert robot.arm.mode == RobotMode.GUIDING
    assert robot.start(Generator.JOINT_VELOCITY) == V10.status_byte(MoveStatus.NOT_POSSIBLE)
    robot.plant.guide = target
    for _ in range(3000):
        robot.arm.advance(None)
    assert np.abs(robot.plant.q_rad - target).max() < 0.02
    robot.arm.guiding(False)
    here = robot.plant.q_rad.copy()
    for _ in range(500):
        robot.arm.advance(None)
    assert np.abs(robot.plant.q_rad - here).max() < 1e-3


def test_cartesian_generators_are_refused_with_a_reason(robot: Robot) -> None:
    assert robot.start(Generator.CARTESIAN_POSE) == V10.status_byte(MoveStatus.NOT_POSSIBLE)
    assert "Cartesian" in robot.events.since(0)[-1]["reason"]
