"""franky against an emulator with faults: what it lives through, what ends a motion, what ends a connection."""

import time

import franky
import numpy as np
import pytest

from deploy.emulator.client import Emulator
from deploy.emulator.protocol import ERRORS


def connect(emulator):
    robot = franky.Robot(emulator.address, realtime_config=franky.RealtimeConfig.Ignore)
    robot.relative_dynamics_factor = 0.2
    return robot


def motion(emulator, robot, fault=None, **parameters):
    """Hold for 0.4 s under the impedance tracker with a fault in the middle; return the status at the end."""
    here = np.array(robot.state.q)
    with franky.JointImpedanceTracker(robot) as tracker:
        tracker.set_target(here)
        while emulator.status()["cycles"] - before(emulator) < 50:
            time.sleep(0.01)
        if fault is not None:
            emulator.fault(fault, **parameters)
        start_ms = emulator.status()["robot_ms"]
        while emulator.status()["robot_ms"] - start_ms < 400 and emulator.status()["moving"]:
            time.sleep(0.01)
            tracker.set_target(here)
    emulator.fault("clear")
    return emulator.status()


marks = {"cycles": 0}


def before(emulator):
    return marks["cycles"]


with Emulator(seed=5) as emulator:
    robot = connect(emulator)
    lived_through = {
        "nothing": (None, {}),
        "15 lost commands": ("loss", {"count": 15}),
        "15 lost states": ("loss", {"direction": "state", "count": 15}),
        "a tenth of the commands two cycles late": ("delay", {"cycles": 2, "probability": 0.1}),
        "jitter": ("delay", {"cycles": 0, "jitter_cycles": 1}),
        "reordered commands": ("reorder", {"probability": 0.2}),
        "everything twice": ("duplicate", {"direction": "both"}),
        "torn commands": ("corrupt", {"probability": 0.1}),
        "5 of every 100 ms without commands": ("loss", {"period_ms": 100, "duration_ms": 5}),
        "a server that stands for 0.3 s": ("stall", {"duration_ms": 300}),
    }
    for what, (fault, parameters) in lived_through.items():
        marks["cycles"] = emulator.status()["cycles"]
        lost = emulator.status()["lost"]
        status = motion(emulator, robot, fault, **parameters)
        assert status["mode"] == "idle" and not status["errors"], f"{what}: {status}"
        newly = status["lost"] - lost
        if fault in (None, "stall", "duplicate"):
            assert newly == 0, f"{what}: {newly} lost"
        else:
            assert newly > 0, f"{what}: nothing lost"
        if "count" in parameters:
            assert newly == 15, f"{what}: {newly} lost"
        if "period_ms" in parameters:
            assert newly >= 15, f"{what}: {newly} lost"
            assert status["longest_lost"] <= 15, "the longest run so far is that of 15 lost commands"

    for what, (fault, parameters) in {
        "25 lost commands": ("loss", {"count": 25}),
        "30 lost states": ("loss", {"direction": "state", "count": 30}),
        "every command three cycles late": ("delay", {"cycles": 3}),
    }.items():
        marks["cycles"] = emulator.status()["cycles"]
        with pytest.raises(franky.ControlException, match="communication_constraints_violation"):
            motion(emulator, robot, fault, **parameters)
        emulator.fault("clear")
        reflex = emulator.events(event="reflex")[-1]
        assert reflex["error"] == "communication_constraints_violation", what
        assert reflex["success_rate"] == pytest.approx(0.8), what
        robot.recover_from_errors()

    # Every reflex there is comes under its own name.
    for error in ERRORS:
        marks["cycles"] = emulator.status()["cycles"]
        with pytest.raises(franky.ControlException, match=rf"\b{error}\b"):
            motion(emulator, robot, "reflex", error=error)
        assert emulator.events(event="reflex")[-1]["error"] == error
        robot.recover_from_errors()

    hand = franky.Gripper(emulator.address)
    assert hand.move(0.08, 0.1)
    start_ms = emulator.status()["robot_ms"]
    emulator.fault("gripper_slow", factor=0.25)
    assert hand.move(0.05, 0.1)
    assert emulator.status()["robot_ms"] - start_ms > 1100, "0.03 m at 0.025 m/s"

    # A closed connection kills the client's object; a new one works, and the arm stands.
    emulator.fault("tcp_close")
    with pytest.raises(Exception):  # noqa: B017 (franky's own and an untranslated one)
        while True:
            robot.state  # noqa: B018
            robot.move(franky.JointMotion([float(value) for value in robot.state.q]))
    assert not emulator.status()["connected"]
    emulator.fault("clear")
    robot = connect(emulator)
    robot.move(franky.JointMotion(list(np.array(robot.state.q) + 0.05)))
    assert np.abs(emulator.status()["dq_rad_s"]).max() < 0.05
    del robot

    emulator.fault("version", number=9)
    with pytest.raises(franky.IncompatibleVersionException):
        connect(emulator)

    with pytest.raises(ValueError, match="tcp_close"):
        emulator.fault("earthquake")
    with pytest.raises(ValueError, match="count"):
        emulator.fault("loss", counts=3)
print("faults: all well")
