"""Does `toto_robot deploy` run a policy on every arm that it names, and does every signal end in a ramp?"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from deploy_run import PATIENCE_S, command, deploy, ends_of_motions, event_lines, events

from deploy.drivers import versions
from deploy.kinematics import grasp_point
from deploy.realtime.records import REPORT_FILE, TICK_FILE, Machine
from deploy.realtime.ticklog import read_ticks
from deploy.run_franka import DeployConfig

SEED = DeployConfig(policy="").first_seed
ARMS = [("fr3", "franky"), ("fr3", "pylibfranka"), ("fer", "panda")]
ROOT = Path(__file__).resolve().parents[2]


def needs(driver: str) -> None:
    if versions.installed(driver) is None:
        pytest.skip(f"{versions.DISTRIBUTIONS[driver]} is not installed: {versions.install_command(driver)}")


@pytest.mark.parametrize(("robot", "driver"), ARMS)
def test_a_dry_run_moves_nothing(bundle, tmp_path, robot, driver):
    needs(driver)
    spelling = "dry_run=true" if driver == "franky" else "--dry-run"
    done = deploy(bundle, tmp_path, f"emulated={robot}", f"driver={driver}", "horizon=5", spelling)
    assert done.returncode == 0, done.stderr
    outcome = json.loads((tmp_path / "episodes.jsonl").read_text())
    assert outcome["ended"] == "horizon" and outcome["steps"] >= 5
    assert "connect" in events(tmp_path) and "motion_started" not in events(tmp_path)
    ticks = read_ticks(tmp_path / TICK_FILE)
    assert (ticks["machine"] == Machine.RUNNING).any(), "it should compute what it would do"


@pytest.mark.parametrize(("robot", "driver"), ARMS)
def test_a_policy_moves_every_arm_through_its_client(bundle, tmp_path, robot, driver):
    needs(driver)
    done = deploy(bundle, tmp_path, f"emulated={robot}", f"driver={driver}", "horizon=16")
    assert done.returncode == 0, done.stderr
    outcome = json.loads((tmp_path / "episodes.jsonl").read_text())
    assert outcome["ended"] == "horizon", outcome
    seen = event_lines(tmp_path)
    # A motion that is stopped for want of a plan on a busy machine begins anew.
    assert set(ends_of_motions(seen)) == {"success"} and "reflex" not in events(tmp_path)
    report = json.loads((tmp_path / REPORT_FILE).read_text())
    assert report["driver"] == driver and report["limits"] == f"{robot} with margins" and report["error"] == ""
    assert report["guards"]["workspace"] == 0, "the task's own box is in the way of the task"
    assert rise_m(tmp_path) > 0.003
    assert report["starved_share"] >= report["plan_ended_share"]


def test_franky_moves_the_arm_by_cartesian_impedance_too(bundle, tmp_path):
    needs("franky")
    done = deploy(bundle, tmp_path, "control=cartesian_impedance", "horizon=16")
    assert done.returncode == 0, done.stderr
    assert set(ends_of_motions(event_lines(tmp_path))) == {"success"} and "reflex" not in events(tmp_path)
    assert rise_m(tmp_path) > 0.003


def test_the_twin_needs_no_server_and_the_hand_stays_in_its_box(bundle, tmp_path):
    env = gymnasium.make("toto_robot/FrankaPick-v0", obs_mode="proprio").unwrapped
    env.reset(seed=SEED)
    start_m = grasp_point(env.data.qpos[:7])
    top_m = float(start_m[2]) + 0.001  # less than one step of the policy
    box = f"box_m=[0,-1,0,1,1,{top_m}]"
    done = deploy(bundle, tmp_path, "robot=twin", "horizon=20", box)
    assert done.returncode == 0, done.stderr
    outcome = json.loads((tmp_path / "episodes.jsonl").read_text())
    assert outcome["ended"] == "horizon" and outcome["seed"] == SEED and outcome["since_reset_s"] > 0.5
    assert not (tmp_path / "robot_events.jsonl").exists()
    report = json.loads((tmp_path / REPORT_FILE).read_text())
    assert report["driver"] == "twin" and report["guards"]["workspace"] > 0
    ticks = read_ticks(tmp_path / TICK_FILE)
    running = ticks[ticks["machine"] == Machine.RUNNING]
    assert grasp_point(running["raw_q_rad"])[:, 2].max() > top_m, "the policy did not ask to leave the box"
    # Where the arm would come to rest is kept inside; joints that brake together may bulge out by millimetres.
    assert grasp_point(running["command_q_rad"])[:, 2].max() <= top_m + 0.01
    assert rise_m(tmp_path) > 0.0002
    with np.load(tmp_path / "policy_00001.npz") as rows:  # it saw the scene, drawn
        pictures = rows["observation.images.front"]
        assert pictures.std() > 10 and rows["observation.images.wrist"].shape == pictures.shape


def rise_m(run: Path) -> float:
    """How far the measured hand came up during the policy's motion."""
    ticks = read_ticks(run / TICK_FILE)
    height_m = grasp_point(ticks["q_rad"][ticks["machine"] == Machine.RUNNING])[:, 2]
    return float(height_m.max() - height_m[0])


def test_the_program_takes_the_option_too():
    words = [str(ROOT / "deploy" / "run_franka.py"), "--dry-run", "policy=bundle", "--config"]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr
    assert "dry_run: true" in done.stdout


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_in_a_ramped_stop(bundle, tmp_path, number):
    needs("franky")
    process = subprocess.Popen(command(bundle, tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    until_s = time.monotonic() + PATIENCE_S
    while "motion_started" not in events(tmp_path):
        assert process.poll() is None and time.monotonic() < until_s, process.stderr and process.stderr.read()
        time.sleep(0.05)
    os.kill(process.pid, number)
    assert process.wait(PATIENCE_S) == 130
    assert set(ends_of_motions(event_lines(tmp_path))) == {"success"} and "reflex" not in events(tmp_path)
    assert json.loads((tmp_path / REPORT_FILE).read_text())["ended_in"] == "idle"
