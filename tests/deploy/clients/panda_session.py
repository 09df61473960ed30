"""panda_py against the emulator of an FER (protocol 5): connect, model library, motions, reflex, recovery, hand."""

import time

import numpy as np
import panda_py
import pytest
from panda_py import controllers, libfranka

from deploy.emulator.client import Emulator

with Emulator(seed=5, robot="fer") as emulator:
    panda = panda_py.Panda(emulator.address)
    assert np.allclose(panda.q, emulator.status()["q_rad"], atol=1e-12)
    model, state = panda.get_model(), panda.get_state()
    pose = np.array(model.pose(libfranka.Frame.kEndEffector, state)).reshape(4, 4).T
    assert np.allclose(pose, panda.get_pose(), atol=1e-9), "the library's kinematics are the plant's"
    assert np.allclose(model.gravity(state), state.tau_J, atol=1e-6), "so are its masses"
    mass = np.array(model.mass(state)).reshape(7, 7)
    assert np.allclose(mass, mass.T) and (np.linalg.eigvalsh(mass) > 0).all()

    # The columns of the Jacobian are what a small turn of a joint does.
    jacobian = np.array(model.zero_jacobian(libfranka.Frame.kEndEffector, state)).reshape(7, 6).T
    offset = np.array([0.2, 0.1, -0.1, 0.15, 0.2, 0.2, -0.2])
    start = panda.q.copy()
    assert panda.move_to_joint_position(start + 1e-3 * offset / np.linalg.norm(offset))
    moved = panda.get_pose()[:3, 3] - pose[:3, 3]
    assert np.allclose(moved, jacobian[:3] @ (panda.q - start), atol=2e-5)

    assert panda.move_to_joint_position(start + offset)
    assert np.abs(panda.q - start - offset).max() < 2e-3

    controller = controllers.JointPosition()
    panda.start_controller(controller)
    goal = panda.q + 0.05
    for step in range(20):
        controller.set_control(goal - 0.05 * (1.0 - (step + 1) / 20))
        time.sleep(0.02)
    deadline_s = time.monotonic() + 10.0
    while np.abs(panda.q - goal).max() > 0.01:
        assert time.monotonic() < deadline_s, "the controller did not arrive"
        time.sleep(0.01)

    emulator.fault("reflex", error="cartesian_reflex")
    deadline_s = time.monotonic() + 10.0
    while emulator.status()["moving"]:
        assert time.monotonic() < deadline_s, "no reflex"
        time.sleep(0.01)
    panda.stop_controller()
    with pytest.raises(RuntimeError, match="cartesian_reflex"):
        panda.raise_error()
    assert panda.get_robot().read_once().robot_mode == libfranka.RobotMode.kReflex
    panda.recover()
    assert emulator.status()["mode"] == "idle"
    assert panda.move_to_joint_position(start)
    assert np.abs(panda.q - start).max() < 2e-3

    hand = libfranka.Gripper(emulator.address)
    assert hand.move(0.06, 0.1)
    assert abs(hand.read_once().width - 0.06) < 0.002
    assert emulator.status()["lost"] == 0
print("panda_py: all well")
