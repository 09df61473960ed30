"""What stands around a control process in a test: its mailboxes, a policy that sends chunks, an operator, a robot?"""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from kinematic_arm import KinematicArm, events

from deploy.realtime.controller import ControlConfig, run_control
from deploy.realtime.machine import MachineSettings
from deploy.realtime.mailbox import Mailbox
from deploy.realtime.records import (
    CHUNK,
    CHUNK_FILE,
    OPERATOR,
    OPERATOR_FILE,
    REPORT_FILE,
    STATE,
    STATE_FILE,
    Machine,
    create_mailboxes,
    text,
)

PATIENCE_S = 30.0
SETTINGS = MachineSettings(stale_s=0.2, stop_s=0.5, pause_s=0.05)


def make_arm(config: ControlConfig) -> KinematicArm:
    told = dict(config.driver_settings)
    return KinematicArm(Path(told.pop("folder")), with_gripper=True, **told)


def settings(folder: Path, **changes: Any) -> ControlConfig:
    """Return the settings of a control process over a kinematic arm."""
    driver = {"folder": str(folder), **changes.pop("driver_settings", {})}
    chosen = {"driver_settings": driver, "machine": SETTINGS, "rate_hz": 100.0, **changes}
    return ControlConfig(driver="kinematic", log_folder=folder / "log", **chosen)


def wait(what: Callable[[], bool]) -> None:
    until_s = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < until_s
        time.sleep(0.01)


class Cell:
    """A control process with its mailboxes; what a policy and an operator would do to it."""

    def __init__(self, folder: Path, config: ControlConfig, make: Any = None) -> None:
        self.folder, self.log, self.config = folder, folder / "log", config
        self.log.mkdir()
        create_mailboxes(folder)
        self.state_box = Mailbox(folder / STATE_FILE, STATE)
        self.chunk_box = Mailbox(folder / CHUNK_FILE, CHUNK)
        self.operator_box = Mailbox(folder / OPERATOR_FILE, OPERATOR)
        self.operator = np.zeros((), OPERATOR)
        spawn = multiprocessing.get_context("spawn")
        self.process = spawn.Process(target=run_control, args=(config, folder, os.getpid(), make))
        self.process.start()
        self._ended = threading.Event()
        self._policy: threading.Thread | None = None
        self.wait_for(lambda: self.state_box.newest()[0] > 0)
        self.home = self.state["q_rad"].copy()

    @property
    def state(self) -> np.ndarray:
        return self.state_box.newest()[1]

    @property
    def machine(self) -> Machine:
        return Machine(int(self.state["machine"]))

    def wait_for(self, what: Callable[[], bool]) -> None:
        until_s = time.monotonic() + PATIENCE_S
        while not what():
            assert time.monotonic() < until_s, (self.machine, text(self.state))
            assert self.process.is_alive() or what(), "the control process ended"
            time.sleep(0.002)

    def reach(self, state: Machine) -> None:
        self.wait_for(lambda: self.machine is state)

    def send(self, **changes: Any) -> None:
        """Send a chunk that swings the first joint, as a policy at 20 Hz would."""
        now_s = time.monotonic()
        record = np.zeros((), CHUNK)
        times = now_s + 0.05 * np.arange(1, 9)
        angle = 4.0 * times
        record["made_s"], record["capture_s"], record["count"] = now_s, now_s - 0.04, 8
        record["time_s"][:8], record["q_rad"][:8] = times, self.home
        record["q_rad"][:8, 0] += 0.3 * np.sin(angle)
        record["dq_rad_s"][:8, 0] = 1.2 * np.cos(angle)
        record["gripper"][:8] = changes.pop("gripper", -1.0)
        for name, value in changes.items():
            record[name] = value
        self.chunk_box.put(record)

    def policy(self, **changes: Any) -> None:
        """Keep sending chunks until `silence`."""
        self.silence()
        self._ended.clear()

        def send() -> None:
            while not self._ended.wait(0.05):
                self.send(**changes)

        self._policy = threading.Thread(target=send)
        self._policy.start()

    def silence(self) -> float:
        """End the policy as a kill would: no last chunk. Return when it sent its last one, at the latest."""
        self._ended.set()
        if self._policy is not None:
            self._policy.join()
        return time.monotonic()

    def ask(self, **changes: Any) -> None:
        for name, value in changes.items():
            self.operator[name] = value
        self.operator["time_s"] = time.monotonic()
        self.operator_box.put(self.operator)

    def fault(self, name: str, times: int = 1) -> None:
        (self.folder / "faults" / name).write_text(str(times))

    def end(self) -> dict[str, Any]:
        self.process.join(PATIENCE_S)
        assert self.process.exitcode is not None
        return json.loads((self.log / REPORT_FILE).read_text())

    def close(self) -> None:
        self.silence()
        if self.process.is_alive():
            self.process.terminate()
            self.process.join(PATIENCE_S)
        if self.process.is_alive():
            self.process.kill()


def after(folder: Path, event: str) -> list[dict[str, Any]]:
    """Return what the arm was told since the last event of a kind, that one included."""
    told = events(folder)
    last = max(index for index, one in enumerate(told) if one["event"] == event)
    return told[last:]


def assert_ramped_stop(folder: Path) -> None:
    """The arm's last motion ended at rest, without a jump on the way, and nothing was sent afterwards."""
    told = after(folder, "start")
    names = [one["event"] for one in told]
    assert "stop" in names
    stop = told[names.index("stop")]
    assert stop["speed"] == 0.0 and stop["moving"]
    assert "target" not in names[names.index("stop") :]
    speeds = np.array([one["dq"] for one in told if one["event"] == "target"])
    assert np.abs(np.diff(speeds, axis=0)).max() <= 0.8 * 10.0 * 0.041  # acceleration times the longest time step
