"""franky against the emulator: connect, state, motions, reflexes, recovery, user stop, hand."""

import time

import franky
import numpy as np
import pytest

from deploy.emulator.client import Emulator


def wait_for(question, what: str) -> None:
    deadline_s = time.monotonic() + 20.0
    while not question():
        assert time.monotonic() < deadline_s, what
        time.sleep(0.005)


with Emulator(seed=5) as emulator:
    robot = franky.Robot(emulator.address, realtime_config=franky.RealtimeConfig.Ignore)
    assert np.allclose(robot.state.q, emulator.status()["q_rad"], atol=1e-6)
    # Pinocchio on our URDF and the plant agree on where the hand is.
    model = np.array(robot.model.pose(franky.Frame.EndEffector, robot.state).matrix)
    assert np.allclose(model, robot.state.O_T_EE.matrix, atol=1e-5)
    assert np.allclose(robot.model.gravity(robot.state), robot.state.tau_J, atol=1e-3)

    robot.relative_dynamics_factor = 0.5
    target = np.array(robot.state.q) + np.array([0.2, -0.1, 0.1, 0.1, 0.2, 0.2, -0.2])
    robot.move(franky.JointMotion(list(target)))
    assert np.allclose(robot.state.q, target, atol=1e-3)

    # Torques at 1 kHz: the tracker follows targets.
    goal = target + 0.05
    with franky.JointImpedanceTracker(robot) as tracker:
        for step in range(20):
            tracker.set_target(target + (goal - target) * (step + 1) / 20)
            time.sleep(0.02)
        wait_for(lambda: np.abs(np.array(robot.state.q) - goal).max() < 0.02, "the tracker did not arrive")

    # A contact above the thresholds, in the middle of a motion: reflex, recovery, motion.
    robot.set_collision_behavior(10.0, 10.0)
    robot.move(franky.JointMotion(list(target)), asynchronous=True)
    emulator.fault("push", wrench=[0, 0, -60.0, 0, 0, 0], duration_ms=200)
    with pytest.raises(franky.ControlException, match="reflex"):
        robot.join_motion()
    assert robot.has_errors
    wait_for(lambda: not emulator.status()["faults"], "the push does not end")
    robot.recover_from_errors()
    robot.set_collision_behavior(100.0, 100.0)
    robot.move(franky.JointMotion(list(target)))

    # The user stop, in the middle of a motion; after its release a client recovers.
    robot.move(franky.JointMotion(list(target + 0.3)), asynchronous=True)
    emulator.fault("user_stop", pressed=True)
    with pytest.raises(franky.ControlException, match="User Stop"):
        robot.join_motion()
    assert robot.state.robot_mode == franky.RobotMode.UserStopped
    with pytest.raises(franky.CommandException, match="not possible"):
        robot.move(franky.JointMotion(list(target)))
    emulator.fault("user_stop", pressed=False)
    robot.recover_from_errors()
    robot.move(franky.JointMotion(list(target)))
    assert np.allclose(robot.state.q, target, atol=1e-3)

    hand = franky.Gripper(emulator.address)
    assert hand.move(0.06, 0.1)
    assert abs(hand.width - 0.06) < 0.002
    emulator.fault("gripper_stuck", duration_ms=3000)
    assert not hand.move(0.02, 0.1), "stuck fingers reach no width"
    assert abs(hand.width - 0.06) < 0.005

    # Another place without another connection.
    emulator.reset(6)
    wait_for(lambda: np.allclose(robot.state.q, emulator.status()["q_rad"], atol=1e-6), "no new place")
    robot.move(franky.JointMotion(list(np.array(robot.state.q) + 0.05)))
    assert emulator.status()["lost"] == 0
    reflexes = [event["error"] for event in emulator.events(event="reflex")]
    assert set(reflexes) <= {"joint_reflex", "cartesian_reflex"} and len(reflexes) == 1, reflexes
print("franky: all well")
