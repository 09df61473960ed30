"""Does a robot that enforces its limits take what the safety filter makes of an adversary's targets?"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.emulator.client import Emulator

CLIENT = Path(__file__).with_name("adversary_client.py")
LENGTH_MS = 4100  # every adversary has its turn


@pytest.mark.skipif(importlib.util.find_spec("pylibfranka") is None, reason="pylibfranka is not installed")
@pytest.mark.parametrize("seed", [0, 1])
def test_no_limit_reflex_at_1_khz(seed: int) -> None:
    with Emulator(robot="fr3") as emulator:
        command = [sys.executable, str(CLIENT), emulator.address, str(LENGTH_MS), str(seed)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout)
        events = emulator.events()
    assert result["error"] == "" and result["sent"] == LENGTH_MS
    assert result["outside"] == [] and min(result["worst"].values()) > 0.5, result["worst"]
    assert result["moved_rad"] > 0.2
    assert [event["status"] for event in events if event["event"] == "motion_ended"] == ["success"]
    assert not [event for event in events if "reflex" in event["event"] or "error" in event["event"]]


@pytest.mark.skipif(importlib.util.find_spec("pylibfranka") is None, reason="pylibfranka is not installed")
def test_the_same_robot_refuses_a_jump() -> None:
    script = (
        "import sys, pylibfranka\n"
        "robot = pylibfranka.Robot(sys.argv[1], pylibfranka.RealtimeConfig.kIgnore)\n"
        "control = robot.start_joint_position_control(pylibfranka.ControllerMode.JointImpedance)\n"
        "q = list(control.readOnce()[0].q_d)\n"
        "q[0] += 0.01\n"
        "for _ in range(5):\n    control.writeOnce(pylibfranka.JointPositions(q)); control.readOnce()\n"
    )
    with Emulator(robot="fr3") as emulator:
        done = subprocess.run([sys.executable, "-c", script, emulator.address], capture_output=True, text=True)
        events = emulator.events()
    assert done.returncode != 0 and "discontinuity" in done.stderr
    assert any("reflex" in event["event"] for event in events)
