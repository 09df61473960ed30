"""Can a person demonstrate with the keys of a real terminal, and with a space mouse whose reports queue up?"""

from __future__ import annotations

import importlib.util
import json
import os
import pty
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from deploy.recording.operators import Seen, SpaceMouse
from deploy.task_interface import Measured
from toto_robot.data.check import Options, check
from toto_robot.data.episodes import EpisodeStore

PATIENCE_S = 240.0
REPEAT_S = 0.03  # a terminal repeats a held key


# --- keys -------------------------------------------------------------------------------------------------------------


class Terminal:
    """A recording in a terminal of its own, and the person before it."""

    def __init__(self, run: Path) -> None:
        self.run, (self._keys, screen) = run, pty.openpty()
        self._log = run.parent / "log"
        words = ["operator=keyboard", "cameras=[front]", "episodes=1", "late_s=60", f"run={run}"]
        with open(self._log, "w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "toto_robot", "record-demos", *words],
                stdin=screen, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        os.close(screen)

    def press(self, key: bytes) -> None:
        os.write(self._keys, key)

    def said(self) -> str:
        return self._log.read_text()

    def event(self, name: str, **fields: Any) -> bool:
        path = self.run / "robot_events.jsonl"
        found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return any(entry["event"] == name and fields.items() <= entry.items() for entry in found)

    def hold(self, key: bytes, until: Callable[[], bool]) -> None:
        """Hold a key until something has come of it; an empty one is none."""
        deadline_s = time.monotonic() + PATIENCE_S
        while not until():
            assert self.process.poll() is None and time.monotonic() < deadline_s, self.said()[-3000:]
            self.press(key)
            time.sleep(REPEAT_S)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(PATIENCE_S)
        os.close(self._keys)


@pytest.mark.skipif(importlib.util.find_spec("franky") is None, reason="not installed: franky-control")
def test_a_person_demonstrates_with_keys(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path / "run")
    try:
        terminal.hold(b"", lambda: "enter begins" in terminal.said())
        terminal.press(b"\n")
        terminal.hold(b"i", lambda: terminal.event("motion_started"))
        enough_s = time.monotonic() + 1.5
        terminal.hold(b"i", lambda: time.monotonic() > enough_s)
        terminal.press(b"g")
        terminal.hold(b"", lambda: terminal.event("gripper", command="grasp"))
        terminal.press(b"y")
        assert terminal.process.wait(PATIENCE_S) == 0, terminal.said()[-3000:]
    finally:
        terminal.close()
    path = tmp_path / "run" / "episodes"
    assert [str(finding) for finding in check(path, Options(progress=False))] == []
    store = EpisodeStore.open(path)
    assert len(store) == 1 and store.meta["success"].all()
    episode = store.episode(0)
    forward, closes = episode["action"][:, 0], episode["action"][:, 6] > 0
    assert set(np.unique(forward)) <= {0.0, 0.5} and (forward > 0).sum() >= 3
    assert not closes[0] and closes[-1], "the hand was told to close after it was open"
    hand_m = episode["observation.state"][:, 18:21]
    assert hand_m[-1, 0] - hand_m[0, 0] > 0.01
    assert list(episode["next.success"].nonzero()[0]) == [len(closes) - 1]


# --- space mouse ------------------------------------------------------------------------------------------------------


class QueueingMouse(ModuleType):
    """The package as version 2 has it: `read` takes one report of the queue into one state, and returns that."""

    def __init__(self) -> None:
        super().__init__("pyspacemouse")
        self.reports: list[dict[str, Any]] = []
        self._state = SimpleNamespace(t=-1.0, x=0.0, y=0.0, z=0.0, roll=0.0, pitch=0.0, yaw=0.0, buttons=[0, 0])
        self.reads = 0

    def open(self) -> QueueingMouse:
        return self

    def read(self) -> SimpleNamespace:
        self.reads += 1
        if self.reports:
            for name, value in self.reports.pop(0).items():
                setattr(self._state, name, value)
            self._state.t = float(self.reads)
        return self._state


@pytest.fixture
def mouse(monkeypatch: pytest.MonkeyPatch) -> QueueingMouse:
    made = QueueingMouse()
    monkeypatch.setitem(sys.modules, "pyspacemouse", made)
    return made


SEEN = Seen(proprio=np.zeros(27), pixels={}, measured=Measured(np.zeros(7), np.zeros(7), 0.08, 0.0))


def test_the_newest_report_counts_and_the_queue_is_empty_after_a_step(mouse: QueueingMouse) -> None:
    operator = SpaceMouse()
    operator.begin(0)
    assert not operator.decide(SEEN, None).action[:6].any()
    mouse.reports += [{"y": 0.01 * number} for number in range(60)]  # as many as come while one step takes long
    mouse.reports += [{"yaw": -0.5}]  # turning has a report of its own
    decision = operator.decide(SEEN, None)
    assert decision.active
    np.testing.assert_allclose(decision.action, [0.59, 0, 0, 0, 0, 0.5, -1], atol=1e-6)
    mouse.reports += [{"y": 1.0}] * 30 + [{"y": 0.0}, {"yaw": 0.0}]  # let go: the arm stops in the next step
    assert not operator.decide(SEEN, None).action[:6].any()
    assert not mouse.reports


def test_a_button_that_was_pressed_between_two_steps_counts(mouse: QueueingMouse) -> None:
    operator = SpaceMouse()
    operator.begin(0)
    mouse.reports += [{"buttons": [1, 0]}, {"buttons": [0, 0]}]
    assert operator.decide(SEEN, None).action[6] == 1.0
    assert operator.decide(SEEN, None).action[6] == 1.0, "it stays closed"
    mouse.reports += [{"buttons": [0, 1]}, {"buttons": [0, 0]}]
    assert operator.decide(SEEN, None).action[6] == -1.0


def test_a_mouse_that_talks_without_end_does_not_hold_up_the_step(mouse: QueueingMouse) -> None:
    mouse.reports += [{"x": 0.5}] * 100_000
    SpaceMouse().decide(SEEN, None)
    assert mouse.reads < 1000


def test_no_mouse_is_an_error_that_says_what_to_do(mouse: QueueingMouse, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> None:
        raise RuntimeError("No connected or supported devices found.")

    monkeypatch.setattr(mouse, "open", nobody)
    with pytest.raises(RuntimeError, match=r"hidraw.*No connected"):
        SpaceMouse()
