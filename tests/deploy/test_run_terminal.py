"""What may the person at the terminal of a real arm do, and does losing the terminal end in a ramped stop?

`robot=fr3` against an emulator that stands elsewhere, as an arm does: it survives whatever happens to the run.
"""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from deploy_run import PATIENCE_S, command, ends_of_motions

from deploy.emulator.client import Emulator
from deploy.operator_keys import OperatorKeys
from deploy.realtime.records import REPORT_FILE
from toto_robot.data.video import write_mp4

_ASK = "from deploy.person import confirm_motion\nconfirm_motion('172.16.0.2')\nprint('it would move')\n"


class Terminal:
    """A program with a terminal of its own: what it prints is read, keys are pressed, and it can be hung up."""

    def __init__(self, words: list[str]) -> None:
        self._master, side = pty.openpty()
        self.process = subprocess.Popen(
            words, stdin=side, stdout=side, stderr=side, start_new_session=True, preexec_fn=_take_terminal
        )
        os.close(side)
        self.text = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        try:
            while part := os.read(self._master, 4096):
                self.text += part.decode(errors="replace")
        except OSError:  # nobody has the other end any more, or this one is closed
            return

    def press(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def wait_for(self, true: Callable[[], object]) -> None:
        until_s = time.monotonic() + PATIENCE_S
        while not true():
            assert self.process.poll() is None or true(), f"the program has ended: {self.text}"
            assert time.monotonic() < until_s, self.text
            time.sleep(0.02)

    def hang_up(self) -> None:
        """Close the window: the kernel sends SIGHUP to the whole foreground group."""
        os.close(self._master)
        self._master = -1

    def close(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        if self._master >= 0:
            os.close(self._master)


def _take_terminal() -> None:
    import fcntl

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.fixture
def open_terminal() -> Iterator[Callable[[list[str]], Terminal]]:
    opened: list[Terminal] = []

    def start(words: list[str]) -> Terminal:
        opened.append(Terminal(words))
        return opened[-1]

    yield start
    for terminal in opened:
        terminal.close()


@pytest.mark.parametrize(
    ("answer", "moves"),
    [("yes", True), (" Yes ", True), ("no", False), ("y", False), ("", False), ("yes please", False), ("\x04", False)],
)
def test_only_yes_lets_an_arm_move(open_terminal, answer, moves):
    terminal = open_terminal([sys.executable, "-c", _ASK])
    terminal.wait_for(lambda: "type yes" in terminal.text)
    terminal.press(answer if answer == "\x04" else answer + "\n")
    assert (terminal.process.wait(PATIENCE_S) == 0) is moves
    terminal._reader.join(PATIENCE_S)
    assert ("it would move" in terminal.text) is moves
    assert ("not confirmed; nothing has moved" in terminal.text) is not moves


@pytest.fixture(scope="module")
def arm() -> Iterator[Emulator]:
    pytest.importorskip("franky", reason="the arm's default driver needs franky-control")
    with Emulator() as robot:
        yield robot


@pytest.fixture
def words(bundle, arm, tmp_path) -> list[str]:
    """The command that runs the policy on the arm."""
    noise = np.random.default_rng(0).integers(0, 255, (60, 48, 64, 3), np.uint8)  # another picture every time
    write_mp4(tmp_path / "noise.mp4", noise, 30.0)
    seen = f"cameras=[front=file:{tmp_path / 'noise.mp4'},wrist=file:{tmp_path / 'noise.mp4'}]"
    return command(
        bundle,
        tmp_path / "run",
        "robot=fr3",
        f"address={arm.address}",
        seen,
        "preflight_s=0.1",
        "collision=100",
    )


def group_signal(number: int) -> Callable[[Terminal], None]:
    return lambda terminal: os.killpg(terminal.process.pid, number)


def test_a_run_that_is_not_confirmed_moves_nothing(open_terminal, words, arm):
    since = last_event(arm)
    terminal = open_terminal(words)
    terminal.wait_for(lambda: "type yes" in terminal.text)
    terminal.press("yes!\n")
    assert terminal.process.wait(PATIENCE_S) == 1
    assert "motion_started" not in {line["event"] for line in arm.events(since)}
    assert not arm.status()["moving"]


@pytest.mark.parametrize(
    ("end", "code"),
    [
        (lambda terminal: terminal.press("s"), 0),
        (lambda terminal: terminal.press("\x03"), 130),  # Ctrl-C: SIGINT to the whole group
        (lambda terminal: terminal.press("\x1c"), 130),  # Ctrl-\: SIGQUIT
        (lambda terminal: terminal.press("\x1as"), 0),  # Ctrl-Z, which freezes nothing, then s
        (group_signal(signal.SIGTERM), 130),
        (Terminal.hang_up, None),  # nobody is left to see the code
    ],
    ids=["key s", "Ctrl-C", "Ctrl-backslash", "Ctrl-Z and s", "SIGTERM to the group", "hang-up"],
)
def test_every_end_is_a_ramped_stop(open_terminal, words, arm, tmp_path, end, code):
    arm.reset(0)
    since = last_event(arm)
    terminal = open_terminal(words)
    terminal.wait_for(lambda: "type yes" in terminal.text)
    terminal.press("yes\n")
    terminal.wait_for(lambda: np.abs(arm.status()["dq_rad_s"]).max() > 0.01)  # it moves
    end(terminal)
    found = terminal.process.wait(PATIENCE_S)
    assert code is None or found == code, terminal.text
    seen = arm.events(since)
    assert set(ends_of_motions(seen)) == {"success"} and "reflex" not in {line["event"] for line in seen}
    status = arm.status()
    assert not status["moving"] and status["errors"] == [] and np.abs(status["dq_rad_s"]).max() < 0.01
    report = json.loads((tmp_path / "run" / REPORT_FILE).read_text())
    assert report["ended_in"] == "idle" and report["error"] == ""


def test_the_next_episode_waits_for_the_person_who_resets_the_scene(open_terminal, words, arm, tmp_path):
    arm.reset(0)
    terminal = open_terminal([*words, "episodes=3"])
    terminal.wait_for(lambda: "type yes" in terminal.text)
    terminal.press("yes\n")
    terminal.wait_for(lambda: np.abs(arm.status()["dq_rad_s"]).max() > 0.01)
    terminal.press("\ne")  # enter while it moves begins nothing
    terminal.wait_for(lambda: "episode 2: put the scene back" in terminal.text)
    since = last_event(arm)
    time.sleep(1.0)
    assert "motion_started" not in {line["event"] for line in arm.events(since)} and not arm.status()["moving"]
    terminal.press("\n")
    terminal.wait_for(lambda: "motion_started" in {line["event"] for line in arm.events(since)})
    terminal.press("y")
    terminal.wait_for(lambda: "episode 3: put the scene back" in terminal.text)
    terminal.press("s")
    assert terminal.process.wait(PATIENCE_S) == 0
    lines = (tmp_path / "run" / "episodes.jsonl").read_text().splitlines()
    assert [json.loads(line)["ended"] for line in lines] == ["failure", "success"]


def last_event(arm: Emulator) -> int:
    return max((line["number"] for line in arm.events()), default=0)


class Asked:
    """What a session is asked by keys."""

    def __init__(self) -> None:
        self.stops = self.confirmations = 0

    def stop_arm(self) -> None:
        self.stops += 1

    def confirm(self) -> None:
        self.confirmations += 1


@pytest.mark.parametrize("key", [b"s", b"q", b" ", b"\x1b", b""])
def test_keys_that_stop_the_arm(key):
    session = Asked()
    keys = OperatorKeys(session)
    keys.press(key)
    assert session.stops == 1 and keys.verdict() == "operator" and keys.verdict() == "operator"


def test_keys_that_end_an_episode_or_confirm():
    session = Asked()
    keys = OperatorKeys(session)
    for key, verdict in ((b"e", "failure"), (b"y", "success"), (b"c", None), (b"x", None)):
        keys.press(key)
        assert keys.verdict() == verdict and keys.verdict() is None
    assert session.stops == 0 and session.confirmations == 1
