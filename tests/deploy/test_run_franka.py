"""Does `toto_robot deploy` refuse what cannot work before anything moves, and does every way out end in a ramp?"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cell import make_bundle

from deploy.drivers import scheduling
from deploy.policy_loop import PolicyRate, check_rate
from deploy.realtime.records import REPORT_FILE
from deploy.run_franka import DeployConfig, confirm_motion

PATIENCE_S = 90.0


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("bundle"))


def command(bundle: Path, run: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "toto_robot", "deploy", f"policy={bundle}", f"run={run}", *words]


def events(run: Path) -> list[str]:
    path = run / "robot_events.jsonl"
    return [json.loads(line)["event"] for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"robot": "ur5"}, "ur5"),
        ({"robot": "fr3"}, "address"),
        ({"address": "172.16.0.2"}, "robot=emulator"),
        ({"emulated": "fr2"}, "fr2"),
        ({"episodes": 0}, "episodes"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, word):
    with pytest.raises(ValueError, match=word):
        DeployConfig(policy="bundle", **settings)


def test_a_rate_that_the_encoder_cannot_hold_is_refused_with_numbers():
    check_rate({"p10_ms": 39.0, "p50_ms": 60.0, "p99_ms": 90.0}, 20.0)  # a busy machine
    with pytest.raises(PolicyRate, match=r"20 Hz.*50\.0 ms.*60\.0.*90\.0 ms"):
        check_rate({"p10_ms": 50.0, "p50_ms": 60.0, "p99_ms": 90.0}, 20.0)


def test_a_real_arm_needs_a_person_at_a_terminal(monkeypatch):
    monkeypatch.setattr(sys, "stdin", open(os.devnull))  # noqa: SIM115
    with pytest.raises(RuntimeError, match="terminal"):
        confirm_motion(DeployConfig(policy="bundle", robot="fr3", address="172.16.0.2"))


def test_missing_cameras_are_refused(bundle, tmp_path):
    done = subprocess.run(
        command(bundle, tmp_path, "robot=fr3", "address=127.0.0.9"), capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 1 and "front, wrist" in done.stderr


def test_an_address_where_nobody_answers_is_refused(bundle, tmp_path):
    cameras = f"cameras=[front=file:{tmp_path / 'none.mp4'},wrist=file:{tmp_path / 'none.mp4'}]"
    done = subprocess.run(
        command(bundle, tmp_path, "robot=fr3", "address=127.0.0.9", cameras),
        capture_output=True, text=True, timeout=PATIENCE_S,
    )  # fmt: skip
    assert done.returncode == 1 and "no answer at 127.0.0.9:1337" in done.stderr and "FCI" in done.stderr


@pytest.mark.skipif(scheduling.realtime_kernel(), reason="this kernel is real-time")
def test_a_kernel_without_real_time_is_refused_where_it_is_asked_for(bundle, tmp_path):
    done = subprocess.run(
        command(bundle, tmp_path, "realtime=enforce"), capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 1 and "kernel" in done.stderr and "motion_started" not in events(tmp_path)


def test_a_dry_run_moves_nothing(bundle, tmp_path):
    pytest.importorskip("franky", reason="the arm's default driver needs franky-control")
    done = subprocess.run(
        command(bundle, tmp_path, "dry_run=true", "horizon=10"), capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stderr
    outcome = json.loads((tmp_path / "episodes.jsonl").read_text())
    assert outcome["ended"] == "horizon" and outcome["steps"] >= 10
    assert "connect" in events(tmp_path) and "motion_started" not in events(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_in_a_ramped_stop(bundle, tmp_path, number):
    pytest.importorskip("franky", reason="the arm's default driver needs franky-control")
    process = subprocess.Popen(command(bundle, tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    until_s = time.monotonic() + PATIENCE_S
    while "motion_started" not in events(tmp_path):
        assert process.poll() is None and time.monotonic() < until_s, process.stderr and process.stderr.read()
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(PATIENCE_S) == 130
    seen = events(tmp_path)
    assert "motion_ended" in seen and "reflex" not in seen
    assert json.loads((tmp_path / REPORT_FILE).read_text())["ended_in"] == "idle"
