"""pylibfranka against the emulator: connect, state, position, velocity and torque motions, limits, async, hand."""

import time

import numpy as np
import pylibfranka as fci
import pytest

from deploy.emulator.client import Emulator


def position_motion(robot, offset, seconds=0.5, jump=None, midway=None):
    """Move along a smooth curve; with `jump` (7,) break off into it halfway, or call `midway` there."""
    control = robot.start_joint_position_control(fci.ControllerMode.JointImpedance)
    state, _ = control.readOnce()
    start, passed = np.array(state.q_d), 0.0
    while passed < seconds:
        _, duration = control.readOnce()
        passed += duration.to_sec()
        part = min(passed / seconds, 1.0)
        q = start + offset * (part**3 * (10 - 15 * part + 6 * part**2))
        if jump is not None and part > 0.5:
            q = q + jump
        if midway is not None and part > 0.5:
            midway = midway()
        command = fci.JointPositions(list(q))
        command.motion_finished = passed >= seconds
        control.writeOnce(command)
    return start + offset


with Emulator(seed=5) as emulator:
    robot = fci.Robot(emulator.address, fci.RealtimeConfig.kIgnore)
    state = robot.read_once()
    assert np.allclose(state.q, emulator.status()["q_rad"], atol=1e-6)
    assert state.robot_mode == fci.RobotMode.Idle
    model = robot.load_model()
    assert np.allclose(model.gravity(state), state.tau_J, atol=1e-3), "the client's model is the plant's"

    offset = np.array([0.1, -0.05, 0.1, 0.1, -0.1, 0.1, 0.2])
    goal = position_motion(robot, offset)
    state = robot.read_once()
    assert np.abs(np.array(state.q) - goal).max() < 1e-3
    assert emulator.status()["lost"] == 0

    # Each limit has its own name.
    limits = {
        "joint_motion_generator_velocity_discontinuity": 1e-3 * np.ones(7),
        "joint_motion_generator_position_limits_violation": 10.0 * np.ones(7),
        "joint_motion_generator_acceleration_discontinuity": 8e-6 * np.ones(7),
    }
    for name, jump in limits.items():
        with pytest.raises(fci.ControlException, match=name):
            position_motion(robot, offset * 0.1, jump=jump)
        assert robot.read_once().robot_mode == fci.RobotMode.Reflex
        assert getattr(robot.read_once().current_errors, name)
        robot.automatic_error_recovery()
        assert robot.read_once().robot_mode == fci.RobotMode.Idle

    for torque, error in (([5.0] + [0.0] * 6, "controller_torque_discontinuity"),):
        control = robot.start_torque_control()
        with pytest.raises(fci.ControlException, match=error):
            for _ in range(10):
                control.readOnce()
                control.writeOnce(fci.Torques(torque))
        del control
        robot.automatic_error_recovery()

    # Torque-free: gravity compensation holds the arm where it is.
    before = np.array(robot.read_once().q)
    control = robot.start_torque_control()
    for cycle in range(300):
        control.readOnce()
        command = fci.Torques([0.0] * 7)
        command.motion_finished = cycle == 299
        control.writeOnce(command)
    assert np.abs(np.array(robot.read_once().q) - before).max() < 5e-3

    # Losses: 15 in a row are lived through, 25 are not; a client sees the reason.
    position_motion(robot, offset * 0.0, midway=lambda: emulator.fault("loss", count=15))
    status = emulator.status()
    assert status["lost"] == 15 == status["longest_lost"]
    with pytest.raises(fci.ControlException, match="communication_constraints_violation"):
        position_motion(robot, offset * 0.0, midway=lambda: emulator.fault("loss", count=25))
    robot.automatic_error_recovery()
    emulator.fault("clear")

    # In lockstep the robot waits for a client that the host held up.
    lost = emulator.status()["lost"]
    position_motion(robot, offset * 0.1, midway=lambda: time.sleep(0.15))
    assert emulator.status()["lost"] == lost

    # Targets at any rate, the robot interpolates.
    handler = fci.AsyncPositionControlHandler
    settings = handler.Configuration(maximum_joint_velocities=[0.5] * 7, goal_tolerance=1e-3)
    result = handler.configure(robot, settings)
    assert result.handler is not None, result.error_message
    goal = np.array(robot.read_once().q) + 0.05
    target = handler.JointPositionTarget(joint_positions=list(goal))
    assert result.handler.set_joint_position_target(target).was_successful
    for _ in range(5000):
        if str(result.handler.get_target_feedback().status).endswith("TargetReached"):
            break
    else:
        raise AssertionError("the target was not reached in 5 s")
    assert np.abs(np.array(robot.read_once().q_d) - goal).max() < 1e-3
    result.handler.stop_control()

    hand = fci.Gripper(emulator.address)
    assert hand.homing()
    assert hand.read_once().width > 0.078
    assert hand.move(0.03, 0.1)
    assert not hand.grasp(0.02, 0.1, 20.0), "there is nothing to grasp"
    assert not hand.read_once().is_grasped

with Emulator(seed=5, pacing="strict") as emulator:
    robot = fci.Robot(emulator.address, fci.RealtimeConfig.kIgnore)
    with pytest.raises(fci.ControlException, match="communication_constraints_violation"):
        position_motion(robot, offset * 0.1, midway=lambda: time.sleep(0.15))
print("pylibfranka: all well")
