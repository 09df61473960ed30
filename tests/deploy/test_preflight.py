"""Does `deploy check` find what is wrong before an arm moves, against a whole emulated robot and without torch?"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.drivers import versions
from deploy.emulator.client import Emulator
from deploy.host_checks import FAILED, OK, WARNING, check_host
from deploy.link_check import Link, judge_link
from deploy.preflight import PreflightConfig, _policy, check_robot, print_table

ROOT = Path(__file__).resolve().parents[2]
_BLOCK = "import sys; sys.modules['torch'] = None; "


def run(*arguments):
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, timeout=300, check=False
    )


@pytest.mark.skipif(versions.installed("franky") is None, reason="franky-control is not installed")
def test_the_whole_check_against_the_emulator(tmp_path):
    # Without torch, as on the computer beside the arm; holding still, so that the robot counts commands.
    words = ["deploy", "check", "seconds=1", "hold=true", f"run={tmp_path}"]
    done = run("-c", _BLOCK + f"from toto_robot.cli import main; main({words})")
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "preflight.json").read_text())
    found = {finding["name"]: finding for finding in report["findings"]}
    for name in ("client", "server", "mode", "joints", "gripper", "communication"):
        assert found[name]["verdict"] == OK, found[name]
    assert {"kernel", "rtprio", "memlock", "governor", "lateness"} <= set(found)
    assert report["ready"]
    assert report["link"]["success_rate"] == 1.0  # lockstep loses nothing
    assert sum(report["link"]["histogram"].values()) == report["link"]["states"] - 1
    assert "ready; wrote" in done.stdout


def test_a_robot_of_another_version_is_told_with_the_package(capsys):
    with Emulator(robot="fr3") as emulator:
        emulator.fault("version", number=5)
        findings = check_robot(PreflightConfig(driver="franky"), emulator.address, {})
        assert emulator.events(event="connect")[-1]["accepted"] is False
    if versions.installed("franky") is None:
        pytest.skip("franky-control is not installed")
    assert findings[-1].name == "server" and findings[-1].verdict == FAILED
    assert "panda-python==1.1.1" in findings[-1].help
    print_table(findings)
    assert "-> that is FER" in capsys.readouterr().out


def test_asking_for_the_version_leaves_the_robot_free_at_once():
    with Emulator(robot="fer") as emulator:
        for _ in range(5):
            assert versions.ask_version(emulator.address) == 5
        assert not emulator.events(event="client_refused")


def test_nobody_there_is_a_failure_with_what_to_do():
    assert versions.ask_version("127.0.0.92") is None
    findings = check_robot(PreflightConfig(robot="fr3", address="127.0.0.92"), "127.0.0.92", {})
    assert findings[-1].verdict == FAILED
    assert findings[-1].help


def test_real_time_is_a_failure_only_where_it_is_asked_for():
    realtime = os.path.exists("/sys/kernel/realtime")
    for enforce, verdict in ((False, WARNING), (True, FAILED)):
        kernel = next(finding for finding in check_host(enforce) if finding.name == "kernel")
        assert kernel.verdict == (OK if realtime else verdict)
        assert realtime or kernel.help


def link(**changes):
    good = {
        "seconds": 10.0,
        "states": 10_000,
        "received": 1.0,
        "longest_gap_ms": 1.0,
        "lateness_ms": [0.05] * 99 + [0.3],
        "success_rate": 1.0,
        "lowest_success_rate": 1.0,
    }
    return Link(**{**good, **changes})


@pytest.mark.parametrize(
    "changes, verdict",
    [
        ({}, OK),
        ({"success_rate": 0.95}, WARNING),
        ({"success_rate": 0.85}, FAILED),
        ({"success_rate": None, "received": 0.85}, WARNING),
    ],
)
def test_a_link_is_judged_by_the_robots_count(changes, verdict):
    assert judge_link(link(**changes))[0].verdict == verdict


def test_late_messages_are_a_warning_and_stand_in_the_histogram():
    late = link(lateness_ms=[0.05] * 90 + [7.0] * 10)
    assert judge_link(late)[1].verdict == WARNING
    assert late.histogram()["< 10 ms"] == 10


def test_a_bundle_that_does_not_load_is_a_failure(tmp_path):
    assert _policy(tmp_path / "nothing", "cpu").verdict == FAILED


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"robot": "ur5"}, "robot must be one of"),
        ({"robot": "fr3"}, "needs address"),
        ({"seconds": 0.0}, "seconds must be"),
        ({"cameras": ("opencv:0",)}, "name=source"),
        ({"realtime": "maybe"}, "realtime must be"),
    ],
)
def test_bad_settings_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        PreflightConfig(**settings)


def test_the_robots_computer_needs_no_torch():
    modules = [
        *("deploy.preflight", "deploy.host_checks", "deploy.link_check", "deploy.kinematics", "deploy.task_interface"),
        *("deploy.drivers.connect", "deploy.drivers.franky", "deploy.drivers.pylibfranka", "deploy.drivers.panda"),
        *("deploy.drivers.twin", "deploy.realtime.controller", "deploy.realtime.safety", "deploy.realtime.mailbox"),
        *("deploy.emulator.client", "deploy.emulator.process", "deploy.cameras.capture", "toto_robot.cli"),
    ]
    done = run("-c", _BLOCK + "".join(f"import {module}; " for module in modules))
    assert done.returncode == 0, done.stderr
