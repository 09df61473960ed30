"""Does the report of a run show one episode and nothing of the next, and does its replay follow the robot?"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from cell import make_bundle

from deploy.episode_log import STORE, read_rows, rows_file
from deploy.realtime.records import TICK, TICK_FILE, Machine
from deploy.realtime.ticklog import read_ticks
from deploy.replay import make_twin, replay
from deploy.report import DeployReportConfig, deploy_report, episode_ticks
from deploy.task_interface import TRAINED
from toto_robot.data.episodes import EpisodeStore

PATIENCE_S = 240.0
STEPS = 30
TASK = {"env_id": "toto_robot/FrankaPick-v0", "preset": "real", "options": None, "randomization": None}


def ticks_of(*machines: Machine) -> np.ndarray:
    """Ten ticks in each state, 10 ms apart."""
    ticks = np.zeros(10 * len(machines), TICK)
    ticks["start_s"] = 0.01 * np.arange(len(ticks))
    ticks["machine"] = np.repeat(machines, 10)
    return ticks


def test_an_episode_ends_where_the_arm_rests():
    ticks = ticks_of(Machine.IDLE, Machine.RUNNING, Machine.HOLDING, Machine.STOPPING, Machine.IDLE, Machine.RUNNING)
    steps = {"inference.end_s": np.array([0.05, 0.12, 0.19])}  # nothing of the second motion
    chosen = episode_ticks(ticks, steps)
    assert chosen["start_s"][0] >= 0.1 - 1e-9 and chosen["start_s"][-1] <= 0.4
    assert Machine.IDLE not in chosen["machine"] and Machine.STOPPING in chosen["machine"]
    second = episode_ticks(ticks, {"inference.end_s": np.array([0.45, 0.55])})
    assert len(second) == 10 and second["start_s"][0] >= 0.5 - 1e-9
    assert len(episode_ticks(ticks, {})) == 0


# --- the replay -------------------------------------------------------------------------------------------------------


def slow_motion(start_rad: np.ndarray, seconds: float = 1.0) -> np.ndarray:
    """Ticks of an arm that follows exactly: one joint goes to and fro by 0.2 rad, the hand closes in the middle."""
    ticks = np.zeros(round(100 * seconds), TICK)
    time_s = 0.01 * np.arange(len(ticks))
    ticks["robot_time_s"], ticks["start_s"] = 7.0 + time_s, time_s
    ticks["command_q_rad"] = start_rad
    ticks["command_q_rad"][:, 0] += 0.1 * (1 - np.cos(2 * np.pi * time_s / seconds))
    ticks["command_dq_rad_s"][:, 0] = 0.2 * np.pi / seconds * np.sin(2 * np.pi * time_s / seconds)
    ticks["q_rad"], ticks["dq_rad_s"] = ticks["command_q_rad"], ticks["command_dq_rad_s"]
    ticks["gripper_width_m"], ticks["gripper_target"] = 0.06, np.where(time_s < seconds / 2, -1.0, 1.0)
    return ticks


def test_the_twin_starts_where_the_robot_was_and_follows_it():
    elsewhere = TRAINED["franka_panda"].posture_rad + np.array([0.6, -0.5, 0.2, 0.3, 0.0, 0.3, 0.0])  # no scene's start
    ticks = slow_motion(elsewhere)
    path = replay(ticks, "fr3", TASK, seed=0)
    assert len(path) == len(ticks), "no reflex: the first target is where the arm stands"
    np.testing.assert_allclose(path[0], elsewhere, atol=1e-3)
    assert np.abs(path - ticks["q_rad"]).max() < np.radians(2.0)
    assert np.ptp(path[:, 0]) > 0.15, "it moved"


def test_the_twin_is_the_recorded_task():
    assert make_twin("fr3", TASK, 0).task["preset"] == "real"
    assert make_twin("fr3", {**TASK, "preset": "pixmc"}, 0).task["preset"] == "pixmc"
    with pytest.raises(TypeError, match="no_such_option"):
        make_twin("fr3", {**TASK, "options": {"no_such_option": 1}}, 0)
    plain, shuffled = (make_twin("fr3", {**TASK, "randomization": names}, 3).task for names in (None, ["lights"]))
    assert plain != shuffled


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The folder of one short episode on the emulator, through the real client."""
    pytest.importorskip("franky", reason="the arm's default driver needs franky-control")
    bundle = make_bundle(tmp_path_factory.mktemp("bundle"))
    folder = tmp_path_factory.mktemp("run")
    words = [f"policy={bundle}", f"run={folder}", f"horizon={STEPS}"]
    done = subprocess.run(
        [sys.executable, "-m", "toto_robot", "deploy", *words], capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_the_command_writes_a_page_with_plots_and_a_video(run, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "toto_robot", "deploy", "report", f"data={run}", f"run={tmp_path}"],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    html = (run / "report.html").read_text()
    for title in ("Episodes", "Joints of episode 1", "Latencies", "Guards", "Replay in the twin", "What the policy"):
        assert f"<h2>{title}" in html, title
    assert html.count('<img src="data:image/png;base64,') == 4  # tracking, latencies, replay, pictures
    seed = json.loads((run / "episodes.jsonl").read_text())["seed"]
    rows = read_rows(rows_file(run, 1))
    with av.open(str(run / "videos" / f"failure_{seed}.mp4")) as video:
        assert sum(1 for _ in video.decode(video=0)) == len(rows["action"]) >= STEPS
    (rms,) = re.findall(r"root mean square ([\d.]+) deg", html)
    assert float(rms) < 1.0 and "stopped by a reflex" not in html


def test_the_replay_of_an_emulated_episode_is_near_it(run):
    ticks = episode_ticks(read_ticks(run / TICK_FILE), read_rows(rows_file(run, 1)))
    assert np.degrees(np.ptp(ticks["q_rad"], axis=0)).max() > 5.0, "the arm moved"
    path = replay(ticks, "fr3", EpisodeStore.open(run / STORE).env, 1_000_000)
    assert len(path) == len(ticks)
    assert np.degrees(np.abs(path - ticks["q_rad"])).max() < 3.0


def test_a_folder_without_a_finished_run_and_an_unknown_episode_are_refused(run, tmp_path):
    with pytest.raises(ValueError, match=r"deploy\.json is missing"):
        deploy_report(DeployReportConfig(data=str(tmp_path)), tmp_path)
    with pytest.raises(ValueError, match="episodes 1 to 1, not 2"):
        deploy_report(DeployReportConfig(data=str(run), episode=2), tmp_path)
