"""Does the control process keep the arm safe whatever happens to the processes around it, and to itself?"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from control_cell import PATIENCE_S, SETTINGS, Cell, after, assert_ramped_stop, make_arm, settings
from kinematic_arm import events

from deploy.realtime.clock import Ticker
from deploy.realtime.controller import ControlConfig
from deploy.realtime.limits import FR3, FR3_BEFORE_5_9, JointLimits
from deploy.realtime.loop import Controller
from deploy.realtime.records import TICK_FILE, Machine, create_mailboxes
from deploy.realtime.ticklog import read_ticks


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Cell]]:
    cells: list[Cell] = []

    def make(**changes: Any) -> Cell:
        cells.append(Cell(tmp_path, settings(tmp_path, **changes), make_arm))
        return cells[-1]

    yield make
    for cell in cells:
        cell.close()


def test_it_follows_chunks_and_says_how_well(start: Callable[..., Cell]) -> None:
    cell = start()
    assert cell.machine is Machine.IDLE
    cell.policy()
    cell.reach(Machine.RUNNING)
    time.sleep(1.5)
    assert abs(float(cell.state["dq_rad_s"][0])) <= 2.0
    cell.silence()
    cell.ask(quit=True)
    report = cell.end()
    assert cell.process.exitcode == 0
    assert_ramped_stop(cell.folder)
    ticks = read_ticks(cell.log / TICK_FILE)
    assert report["ticks"] == len(ticks) > 100 and report["lost_log_records"] == 0
    running = ticks[ticks["machine"] == Machine.RUNNING]
    behind = np.abs(running["raw_q_rad"] - running["command_q_rad"]).max(axis=1)
    assert np.median(behind[len(behind) // 2 :]) < 0.03  # after the jump of the first chunk
    assert np.ptp(running["command_q_rad"][:, 0]) > 0.3
    assert report["capture_to_command_ms"]["n"] > 5 and report["capture_to_command_ms"]["p50"] >= 40.0
    assert report["starved_share"] < 0.5
    assert report["ended_in"] == "idle" and report["error"] == ""


def test_a_killed_policy_leaves_the_arm_holding_then_stopped_within_half_a_second(start: Callable[..., Cell]) -> None:
    cell = start()
    cell.policy()
    cell.reach(Machine.RUNNING)
    time.sleep(0.5)
    silent_s = cell.silence()
    cell.reach(Machine.IDLE)
    assert_ramped_stop(cell.folder)
    ticks = read_ticks(cell.log / TICK_FILE)
    cell.ask(quit=True)
    cell.end()
    ticks = read_ticks(cell.log / TICK_FILE)
    stale = ticks["start_s"] - ticks["chunk_made_s"]
    assert (ticks["machine"][stale > SETTINGS.stale_s + 0.001] != Machine.RUNNING).all()
    moving = np.abs(ticks["command_dq_rad_s"]).max(axis=1) > 0
    assert ticks["start_s"][moving].max() - ticks["chunk_made_s"].max() < 0.5
    order = [Machine(int(machine)) for machine, _ in itertools.groupby(ticks["machine"])]
    assert order[-4:] == [Machine.RUNNING, Machine.HOLDING, Machine.STOPPING, Machine.IDLE]
    assert silent_s > 0


def test_ticks_without_a_fresh_plan_are_starved_unless_a_hold_was_asked_for(start: Callable[..., Cell]) -> None:
    cell = start()
    cell.policy()
    cell.reach(Machine.RUNNING)
    cell.ask(hold=True)
    cell.reach(Machine.HOLDING)
    time.sleep(0.3)
    cell.ask(hold=False)
    cell.reach(Machine.RUNNING)
    cell.silence()
    cell.reach(Machine.HOLDING)
    cell.reach(Machine.IDLE)  # in between it brakes, holds and stops: nobody has asked for that
    time.sleep(0.3)
    cell.ask(quit=True)
    report = cell.end()
    ticks = read_ticks(cell.log / TICK_FILE)
    machine, starved = ticks["machine"], ticks["starved"]
    held = np.flatnonzero(machine == Machine.HOLDING)
    *before, last = np.split(held, np.flatnonzero(np.diff(held) > 1) + 1)
    assert any(len(part) > 10 and not starved[part[1:-1]].any() for part in before), "one was asked for"
    assert starved[last].all() and starved[machine == Machine.STOPPING].all()
    assert starved[last[-1] : -5].all(), "the arm still waits for a plan"
    due = starved | (machine == Machine.RUNNING)
    assert report["starved_share"] == pytest.approx(starved[due].mean())
    assert report["plan_ended_share"] == pytest.approx(ticks["plan_ended"][due].mean())
    assert report["starved_share"] > report["plan_ended_share"] == 0.0  # the arm brakes long before a plan ends


@pytest.mark.parametrize(
    ("robot", "version", "limits"), [("fr3", 10, FR3), ("fr3", 9, FR3_BEFORE_5_9), ("fr3", 6, FR3_BEFORE_5_9)]
)
def test_the_robots_version_chooses_its_limits(
    start: Callable[..., Cell], robot: str, version: int, limits: JointLimits
) -> None:
    cell = start(robot=robot, driver_settings={"version": version})
    cell.ask(quit=True)
    report = cell.end()
    assert report["limits"] == f"{limits.name} with margins" and report["limits_source"] == limits.source


def test_a_robot_that_answers_as_another_one_is_refused(tmp_path: Path) -> None:
    create_mailboxes(tmp_path)
    config = settings(tmp_path, robot="fr3", driver_settings={"version": 5})
    with pytest.raises(ValueError, match="Panda, robot=fer"):
        Controller(config, tmp_path, make_arm(config), None)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_in_a_ramped_stop(start: Callable[..., Cell], number: signal.Signals) -> None:
    cell = start()
    cell.policy()
    cell.reach(Machine.RUNNING)
    time.sleep(0.4)
    assert cell.process.pid is not None
    os.kill(cell.process.pid, number)
    report = cell.end()
    assert_ramped_stop(cell.folder)
    assert events(cell.folder)[-1]["event"] == "close"
    assert report["signals"] == [number.name] and cell.process.exitcode == 0


def test_an_exception_ends_in_a_ramped_stop(start: Callable[..., Cell]) -> None:
    cell = start()
    cell.policy()
    cell.reach(Machine.RUNNING)
    time.sleep(0.4)
    cell.fault("crash")
    report = cell.end()
    assert_ramped_stop(cell.folder)
    assert report["error"] == "RuntimeError: a bug" and cell.process.exitcode == 1


def test_the_death_of_its_parent_ends_in_a_ramped_stop(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from control_cell import Cell, make_arm, settings\n"
        "if __name__ == '__main__':\n"
        "    folder = Path(sys.argv[1]); cell = Cell(folder, settings(folder), make_arm); cell.policy()\n"
        "    print(cell.process.pid, flush=True); time.sleep(60)\n"
    )
    (tmp_path / "parent.py").write_text(script)
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    command = [sys.executable, str(tmp_path / "parent.py"), str(tmp_path)]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        until_s = time.monotonic() + PATIENCE_S
        while not any(one["event"] == "target" for one in events(tmp_path)) and time.monotonic() < until_s:
            time.sleep(0.01)
        parent.kill()
    while not any(one["event"] == "close" for one in events(tmp_path)):
        assert time.monotonic() < until_s, f"the control process {child} goes on"
        time.sleep(0.01)
    assert_ramped_stop(tmp_path)


def test_a_reflex_is_recovered_and_the_policy_goes_on(start: Callable[..., Cell]) -> None:
    cell = start()
    cell.policy()
    cell.reach(Machine.RUNNING)
    cell.fault("recover", 2)
    cell.fault("reflex")
    cell.wait_for(lambda: [one["event"] for one in events(cell.folder)].count("start") == 2)
    told = [one["event"] for one in events(cell.folder) if one["event"] != "target"]
    begin = told.index("recover")
    assert told[begin : begin + 5].count("recover") == 3
    assert int(cell.state["recoveries"]) == 3
    since = after(cell.folder, "start")
    cell.reach(Machine.RUNNING)
    assert since[0]["event"] == "start"


def test_after_a_user_stop_only_a_confirmation_lets_it_move(start: Callable[..., Cell]) -> None:
    cell = start()
    cell.policy()
    cell.reach(Machine.RUNNING)
    cell.fault("user_stop")
    cell.reach(Machine.USER_STOPPED)
    time.sleep(0.5)
    fault, *then = after(cell.folder, "fault")
    # Fresh chunks came in all the time. A command to the hand may have been under way in that very tick.
    assert [one for one in then if one["time_s"] > fault["time_s"] + 0.05 or "gripper" not in one["event"]] == []
    cell.ask(confirm=1)
    cell.reach(Machine.RUNNING)
    then = [one["event"] for one in after(cell.folder, "fault") if "gripper" not in one["event"]]
    assert then[1:3] == ["recover", "start"]


def test_a_lost_connection_is_rebuilt_and_a_dead_robot_ends_in_lost(start: Callable[..., Cell]) -> None:
    cell = start()
    cell.policy()
    cell.reach(Machine.RUNNING)
    cell.fault("lost")
    cell.wait_for(lambda: [one["event"] for one in events(cell.folder)].count("start") == 2)
    cell.fault("connect", 100)
    cell.fault("lost")
    cell.wait_for(lambda: bool(cell.state["gave_up"]))
    assert cell.machine is Machine.LOST
    cell.ask(quit=True)
    assert cell.end()["ended_in"] == "lost"


def test_stale_reordered_and_broken_chunks_move_nothing(start: Callable[..., Cell]) -> None:
    cell = start()
    now_s = time.monotonic()
    for bad in (
        {"made_s": now_s - 1.0},
        {"made_s": np.nan},
        {"made_s": now_s + 60},
        {"q_rad": np.nan},
        {"q_rad": np.inf, "made_s": time.monotonic()},
        {"count": 0},
        {"time_s": 0.0},
    ):
        before = int(cell.state["chunk_sequence"])
        cell.send(**bad)
        cell.wait_for(lambda before=before: int(cell.state["chunk_sequence"]) > before)
        time.sleep(0.03)
    assert cell.machine is Machine.IDLE
    assert not any(one["event"] == "start" for one in events(cell.folder))
    cell.ask(quit=True)
    rejected = cell.end()["chunks_rejected"]
    assert rejected["not finite"] == 2 and sum(rejected.values()) >= 5


def test_nan_chunks_in_a_motion_end_it_gently(start: Callable[..., Cell]) -> None:
    cell = start()
    cell.policy()
    cell.reach(Machine.RUNNING)
    cell.policy(q_rad=np.nan)
    cell.reach(Machine.IDLE)
    assert_ramped_stop(cell.folder)


def test_the_operator_stops_and_holds(start: Callable[..., Cell]) -> None:
    cell = start()
    cell.policy()
    cell.reach(Machine.RUNNING)
    cell.ask(hold=True)
    cell.reach(Machine.HOLDING)
    cell.wait_for(lambda: not np.any(cell.state["command_dq_rad_s"]))
    time.sleep(0.6)
    assert cell.machine is Machine.HOLDING  # fresh chunks keep it in control
    cell.ask(hold=False)
    cell.reach(Machine.RUNNING)
    cell.ask(stop=True)
    cell.reach(Machine.IDLE)
    assert_ramped_stop(cell.folder)
    time.sleep(0.3)
    assert cell.machine is Machine.IDLE
    cell.ask(stop=False)
    cell.reach(Machine.RUNNING)
    cell.silence()
    cell.send(stop=True)  # the policy's own end
    cell.reach(Machine.IDLE)
    assert_ramped_stop(cell.folder)


def test_a_dry_run_moves_nothing(start: Callable[..., Cell]) -> None:
    cell = start(dry_run=True)
    cell.policy(gripper=1.0)
    cell.reach(Machine.RUNNING)
    time.sleep(0.5)
    cell.ask(quit=True)
    report = cell.end()
    assert {one["event"] for one in events(cell.folder)} == {"connect", "close"}
    running = read_ticks(cell.log / TICK_FILE)
    running = running[running["machine"] == Machine.RUNNING]
    assert np.ptp(running["command_q_rad"][:, 0]) > 0.05  # it did compute the motion
    assert report["gripper_commands"] == 0


def test_the_gripper_gets_few_commands(start: Callable[..., Cell]) -> None:
    cell = start()
    rng = np.random.default_rng(0)
    wanted = [-1.0] * 10 + [1.0] * 20 + list(rng.uniform(-0.25, 0.25, 10)) + [-1.0] * 10
    for value in wanted:
        cell.send(gripper=value)
        time.sleep(0.05)
    cell.wait_for(lambda: float(cell.state["gripper_target"]) == -1.0)
    cell.ask(quit=True)
    report = cell.end()
    told = [one for one in events(cell.folder) if one["event"].startswith("gripper")]
    assert [one["event"] for one in told][:2] == ["gripper_move", "gripper_grasp"]
    assert len(told) <= 3 and report["gripper_commands"] == len(told)
    assert report["gripper_failures"] == {"nothing held": 1}
    assert min(np.diff([one["time_s"] for one in told])) >= 0.6


def test_commands_keep_their_limits_in_the_robots_time(start: Callable[..., Cell]) -> None:
    # A robot whose clock runs at a third of ours, as an emulator's does that waits for its client.
    cell = start(driver_settings={"slowness": 3.0})
    cell.policy()
    cell.reach(Machine.RUNNING)
    time.sleep(1.5)
    cell.silence()
    cell.ask(quit=True)
    cell.end()
    ticks = read_ticks(cell.log / TICK_FILE)
    ticks = ticks[ticks["machine"] == Machine.RUNNING]
    travelled = np.abs(np.diff(ticks["command_q_rad"], axis=0)).max(axis=1).sum()
    assert travelled > 0.2
    window = 20  # ticks: longer than the slack of two
    moved = np.abs(ticks["command_q_rad"][window:] - ticks["command_q_rad"][:-window]).max(axis=1)
    passed_s = ticks["robot_time_s"][window:] - ticks["robot_time_s"][:-window]
    assert (moved <= 0.8 * 2.62 * (passed_s + 0.06)).all()
    speed = np.abs(ticks["command_dq_rad_s"]).max(axis=1)
    integral = (speed[1:] * np.diff(ticks["robot_time_s"])).sum()
    assert travelled == pytest.approx(integral, rel=0.25)  # three times as far by the host's clock


def test_a_late_loop_skips_deadlines_instead_of_bursting() -> None:
    ticker = Ticker(100.0)
    ticker.wait()
    time.sleep(0.2)
    began_s = ticker.wait()
    times = [ticker.wait() for _ in range(5)]
    assert ticker.missed >= 15
    assert times[-1] - began_s > 0.03  # five ticks one after the other, not at once
    with pytest.raises(ValueError, match="1 to 1000 Hz"):
        Ticker(0.0)


def test_refusals_come_before_any_motion() -> None:
    for bad in ({"rate_hz": 20.0}, {"realtime_priority": 99}):
        with pytest.raises(ValueError, match="expected"):
            ControlConfig(**bad)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="known: fer"):
        ControlConfig(robot="ur5").safety(None, 10)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give up its rights")
def test_no_permission_for_priority_says_what_to_do() -> None:
    script = (
        "import os, resource; from deploy.realtime.clock import raise_priority\n"
        "resource.setrlimit(resource.RLIMIT_RTPRIO, (0, 0)); os.setuid(65534)\n"
        "assert os.sched_getscheduler(0) == os.SCHED_OTHER\n"  # who has real time already may keep it
        "try: raise_priority(20)\nexcept PermissionError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "limits.conf" in done.stdout
