"""Is the arm safe when a real client, our control process and an emulated robot fail one after the other?"""

from __future__ import annotations

import importlib.util
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from control_cell import Cell, wait

from deploy.emulator.client import Emulator
from deploy.realtime.controller import ControlConfig
from deploy.realtime.machine import MachineSettings
from deploy.realtime.records import TICK_FILE, Machine
from deploy.realtime.ticklog import read_ticks

MISSING = [name for name in ("franky", "deploy.drivers.franky") if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {MISSING}")
SETTINGS = MachineSettings(stale_s=0.3, stop_s=0.5, tries=5, pause_s=0.05)


@pytest.fixture(scope="module")
def emulator() -> Iterator[Emulator]:
    with Emulator(robot="fr3") as running:
        yield running


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Any]:
    cells: list[Cell] = []

    def make(emulator: Emulator, **changes: Any) -> Cell:
        settings = {"driver": "franky", "robot": "fr3", "address": emulator.address, "machine": SETTINGS}
        config = ControlConfig(log_folder=tmp_path / "log", rate_hz=100.0, **{**settings, **changes})
        cells.append(Cell(tmp_path, config))
        return cells[-1]

    yield make
    for cell in cells:
        cell.close()


def at_rest(emulator: Emulator) -> bool:
    status = emulator.status()
    return not status["moving"] and float(np.abs(status["dq_rad_s"]).max()) < 0.02


def last(emulator: Emulator, kind: str) -> dict[str, Any]:
    return emulator.events(event=kind)[-1]


def test_it_moves_a_real_client_and_ends_the_motion(emulator: Emulator, start: Any) -> None:
    cell = start(emulator)
    cell.policy()
    cell.reach(Machine.RUNNING)
    time.sleep(1.5)
    cell.silence()
    cell.ask(quit=True)
    report = cell.end()
    assert cell.process.exitcode == 0 and report["ended_in"] == "idle"
    assert [event["error"] for event in emulator.events(event="reflex")] == [], emulator.events(event="reflex")
    assert last(emulator, "motion_ended")["status"] == "success"
    ticks = read_ticks(cell.log / TICK_FILE)
    running = ticks[ticks["machine"] == Machine.RUNNING]
    assert np.ptp(running["q_rad"][:, 0]) > 0.2  # the measured arm
    assert np.median(np.abs(running["q_rad"] - running["command_q_rad"]).max(axis=1)) < 0.05
    wait(lambda: at_rest(emulator))


def test_a_killed_control_process_leaves_a_robot_that_stops(emulator: Emulator, start: Any) -> None:
    cell = start(emulator)
    cell.policy()
    cell.reach(Machine.RUNNING)
    cell.wait_for(lambda: float(np.abs(cell.state["dq_rad_s"]).max()) > 0.3)
    before = emulator.events()[-1]["number"]
    assert cell.process.pid is not None
    os.kill(cell.process.pid, signal.SIGKILL)
    wait(lambda: any(event["event"] == "client_gone" for event in emulator.events(before)))
    gone_ms = next(event["robot_ms"] for event in emulator.events(before) if event["event"] == "client_gone")
    ended = [event["robot_ms"] for event in emulator.events(before) if event["event"] == "motion_ended"]
    assert ended and ended[0] - gone_ms < 100  # of robot time: the robot ends the motion by itself
    wait(lambda: at_rest(emulator))
    q_rad = np.array(emulator.status()["q_rad"])
    time.sleep(0.3)
    assert np.abs(np.array(emulator.status()["q_rad"]) - q_rad).max() < 1e-3


def test_a_reflex_is_recovered_and_a_user_stop_waits_for_a_person(emulator: Emulator, start: Any) -> None:
    cell = start(emulator)
    cell.policy()
    cell.reach(Machine.RUNNING)
    starts = len(emulator.events(event="motion_started"))
    emulator.fault("reflex", error="cartesian_reflex")
    cell.wait_for(lambda: len(emulator.events(event="motion_started")) > starts)
    cell.reach(Machine.RUNNING)
    assert int(cell.state["recoveries"]) >= 1
    emulator.fault("user_stop", pressed=True)
    cell.reach(Machine.USER_STOPPED)
    emulator.fault("user_stop", pressed=False)
    starts = len(emulator.events(event="motion_started"))
    time.sleep(0.5)
    assert cell.machine is Machine.USER_STOPPED and len(emulator.events(event="motion_started")) == starts
    cell.ask(confirm=1)
    cell.reach(Machine.RUNNING)
    cell.ask(quit=True)
    assert cell.end()["ended_in"] == "idle"
    wait(lambda: at_rest(emulator))


def test_lost_commands_end_in_a_reflex_that_is_recovered(emulator: Emulator, start: Any) -> None:
    cell = start(emulator)
    cell.policy()
    cell.reach(Machine.RUNNING)
    cell.wait_for(
        lambda: float(np.abs(cell.state["dq_rad_s"]).max()) > 0.3
    )  # lost are commands, not waiting for the first
    starts = len(emulator.events(event="motion_started"))
    emulator.fault("loss", direction="command", count=30)
    cell.wait_for(lambda: len(emulator.events(event="motion_started")) > starts)
    assert last(emulator, "reflex")["error"] == "communication_constraints_violation"
    cell.reach(Machine.RUNNING)


def test_a_closed_connection_is_rebuilt(emulator: Emulator, start: Any) -> None:
    cell = start(emulator)
    cell.policy()
    cell.reach(Machine.RUNNING)
    starts = len(emulator.events(event="motion_started"))
    emulator.fault("tcp_close")
    cell.wait_for(lambda: len(emulator.events(event="motion_started")) > starts)
    cell.reach(Machine.RUNNING)


def test_a_killed_robot_ends_in_lost(start: Any) -> None:
    with Emulator(robot="fr3") as dying:
        cell = start(dying, machine=MachineSettings(stale_s=0.3, stop_s=0.5, tries=2, pause_s=0.05))
        cell.policy()
        cell.reach(Machine.RUNNING)
        dying.kill()
        cell.wait_for(lambda: bool(cell.state["gave_up"]))
        assert cell.machine is Machine.LOST
        cell.ask(quit=True)
        assert cell.end()["ended_in"] == "lost"
