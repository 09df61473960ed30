"""Does `deploy check` find what is wrong before an arm moves, against a whole emulated robot and without torch?"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from deploy_run import changed

from deploy.camera_check import check_camera, judge_frames
from deploy.drivers import versions
from deploy.emulator.client import Emulator
from deploy.host_checks import FAILED, OK, WARNING, check_host
from deploy.link_check import Link, judge_link
from deploy.policy_latency import PolicyRate, check_policy, check_rate, judge_policy
from deploy.preflight import PreflightConfig, check_robot, print_table
from deploy.realtime.limits import FR3, FR3_BEFORE_5_9, limits_for
from toto_robot.data.video import write_mp4

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


@pytest.mark.parametrize(("number", "limits"), [(9, FR3_BEFORE_5_9), (6, FR3_BEFORE_5_9), (10, FR3)])
def test_the_version_that_a_robot_answers_says_its_limits_and_its_package(number, limits):
    with Emulator(robot="fr3") as emulator:
        emulator.fault("version", number=number)
        server = versions.ask_version(emulator.address)
        findings = check_robot(PreflightConfig(), emulator.address, {})
    assert server == number and limits_for("fr3", server) is limits
    found = next(finding for finding in findings if finding.name == "server")
    if number == 10:
        assert found.verdict == OK and found.text.endswith("limits fr3")
    else:
        assert found.verdict == FAILED and f"by-robot-server-version/{number}/" in found.help


def test_a_panda_that_is_called_fr3_is_a_failure():
    with Emulator(robot="fer") as emulator:
        findings = check_robot(PreflightConfig(robot="fr3", address=emulator.address), emulator.address, {})
    assert findings[-1].verdict == FAILED and "panda-python" in findings[-1].help


def test_the_twin_is_looked_at_without_a_server():
    found = {finding.name: finding for finding in check_robot(PreflightConfig(robot="twin"), "", {})}
    assert set(found) == {"mode", "joints", "gripper"} and {finding.verdict for finding in found.values()} == {OK}


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
    assert check_policy(tmp_path / "nothing", "cpu").verdict == FAILED


def test_a_policy_is_timed_against_its_own_period(bundle, tmp_path):
    found = check_policy(changed(bundle, tmp_path / "slow", control_rate_hz=0.2), "cpu")  # whatever else runs here
    assert found.verdict == OK and "ms a step" in found.text and "of a period of 5000 ms" in found.text
    found = check_policy(changed(bundle, tmp_path / "fast", control_rate_hz=2000.0), "cpu")
    assert found.verdict == FAILED and "the bundle wants 2000 Hz" in found.text


@pytest.mark.parametrize(
    ("p10_ms", "p50_ms", "p99_ms", "verdict"),
    [(10, 12, 39, OK), (10, 12, 41, WARNING), (39, 60, 90, WARNING), (41, 60, 90, FAILED)],
)
def test_check_fails_exactly_the_policies_that_a_deployment_refuses(p10_ms, p50_ms, p99_ms, verdict):
    measured = {"p10_ms": p10_ms, "p50_ms": p50_ms, "p99_ms": p99_ms}
    found = judge_policy(measured, 20.0)
    assert found.verdict == verdict and "device=cuda" in found.text + found.help
    try:
        check_rate(measured, 20.0)
    except PolicyRate as error:
        assert verdict == FAILED and found.text == str(error)
    else:
        assert verdict != FAILED


def film(path, brightest):
    write_mp4(path, np.random.default_rng(0).integers(0, brightest, (40, 480, 640, 3), np.uint8), 30.0)
    return f"file:{path}"


def test_a_camera_is_opened_read_and_judged(tmp_path):
    found = check_camera("front", film(tmp_path / "good.mp4", 255))
    assert found.name == "camera front" and found.verdict in (OK, WARNING), found  # slow on a busy machine
    assert found.text.startswith("640x480 at ") and "black" not in found.text
    found = check_camera("wrist", film(tmp_path / "black.mp4", 2))
    assert found.verdict == FAILED and "black" in found.text and "lens cap" in found.help
    found = check_camera("wrist", f"file:{tmp_path / 'none.mp4'}")
    assert found.verdict == FAILED and "does not open" in found.text
    with pytest.raises(ValueError, match="expected opencv"):
        check_camera("front", "webcam")


@pytest.mark.parametrize(
    ("rate_hz", "value", "verdict", "word"),
    [(30.0, 200, OK, "at 30 Hz"), (10.0, 200, WARNING, "slower than 30 Hz"), (30.0, 3, FAILED, "black")],
)
def test_slow_and_black_frames_are_told(rate_hz, value, verdict, word):
    frames = [(5.0 + number / rate_hz, np.full((48, 64, 3), value, np.uint8)) for number in range(30)]
    found = judge_frames("front", frames, 0.02, 30.0)
    assert found.verdict == verdict and word in found.text and "64x48" in found.text and "20 ms old" in found.text


def test_a_priority_is_looked_at_where_it_is_asked_for():
    names = [finding.name for finding in check_host(False)]
    assert "priority" not in names and "priority" in [finding.name for finding in check_host(False, 20)]


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"robot": "ur5"}, "robot must be one of"),
        ({"robot": "fr3"}, "needs address"),
        ({"seconds": 0.0}, "seconds must be"),
        ({"cameras": ("opencv:0",)}, "name=source"),
        ({"realtime": "maybe"}, "realtime must be"),
        ({"realtime_priority": -1}, "realtime_priority must be"),
        ({"driver": "frank"}, "did you mean 'franky'"),
        ({"robot": "fer", "address": "172.16.0.2", "driver": "franky"}, "franky moves fr3, not fer"),
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
