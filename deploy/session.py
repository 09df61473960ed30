"""What runs beside each other during a deployment, and how does it always end at rest?

The process with the terminal starts control, inference and cameras, says which episode runs, watches all of them, and
ends an episode on success, at the horizon, on a fault that does not pass, or when a person asks. It never waits for
another process without a limit, and whatever ends it ends in a ramped stop: the control process does that by itself
when it is told to, and when its parent dies.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from deploy.drivers.base import DriverError, RobotDriver
from deploy.policy_loop import InferenceConfig, InferenceProcess
from deploy.realtime.controller import ControlConfig, run_control
from deploy.realtime.mailbox import Mailbox
from deploy.realtime.records import (
    EPISODE,
    EPISODE_FILE,
    INFERENCE,
    INFERENCE_FILE,
    OPERATOR,
    OPERATOR_FILE,
    STATE,
    STATE_FILE,
    Machine,
    create_mailboxes,
    text,
)
from toto_robot.one_thread import ONE_THREAD, environment_variables
from toto_robot.run_folder import write_text

_POLL_S = 0.02
_ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
ERROR_FILE = "control_error"  # why the control process refused or ended
_REST_S = 15.0  # for a ramp and the end of a motion
_QUIT_S = 5.0
_FIRST_STATE_S = 60.0


class ProcessDied(RuntimeError):
    """A process of the run ended by itself; the arm was stopped."""


@dataclass(frozen=True, kw_only=True)
class Watch:
    """When an episode ends, besides success."""

    horizon_steps: int
    longest_s: float  # host time: a loaded machine is slow, a broken one does not move at all
    trouble_s: float = 5.0  # without a policy step


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How an episode ended."""

    ended: str  # success, failure, horizon, operator, trouble, died
    steps: int
    seconds: float
    reason: str = ""


def control_main(
    config: ControlConfig, folder: Path, parent: int, make: Callable[[ControlConfig], RobotDriver] | None
) -> None:
    """Run the control process; what ends it is told in ERROR_FILE, for the process with the terminal."""
    try:
        run_control(config, folder, parent, make)
    except (DriverError, OSError, ValueError) as error:
        write_text(folder / ERROR_FILE, f"{type(error).__name__}: {error}")
        raise SystemExit(1) from None


class Session:
    """Control and inference of one run; a context manager whose exit leaves the arm at rest."""

    def __init__(
        self,
        folder: Path,
        control: ControlConfig,
        inference: InferenceConfig,
        make: Callable[[ControlConfig], RobotDriver] | None = None,
    ) -> None:
        """`folder` is for mailboxes; `make` makes a driver other than those that `control.driver` names."""
        self.folder, self._control_config, self._make = folder, control, make
        self.inference = InferenceProcess(inference, folder)
        self.control: BaseProcess | None = None
        self._operator, self._episode = np.zeros((), OPERATOR), np.zeros((), EPISODE)

    def __enter__(self) -> Self:
        create_mailboxes(self.folder)
        self._boxes = {
            "state": Mailbox(self.folder / STATE_FILE, STATE),
            "operator": Mailbox(self.folder / OPERATOR_FILE, OPERATOR),
        }
        try:
            self.inference.__enter__()
            self._boxes["episode"] = Mailbox(self.folder / EPISODE_FILE, EPISODE)
            self._boxes["inference"] = Mailbox(self.folder / INFERENCE_FILE, INFERENCE)
            context = multiprocessing.get_context("spawn")
            arguments = (self._control_config, self.folder, os.getpid(), self._make)
            self.control = context.Process(target=control_main, args=arguments, name="control")
            with environment_variables(ONE_THREAD):
                self.control.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def wait_connected(self) -> None:
        """Wait for the arm's first state; ProcessDied if the control process refuses to start."""
        self._wait(lambda: bool(self.state["time_s"] > 0), _FIRST_STATE_S, "the arm gives no state")

    @property
    def state(self) -> np.ndarray:
        """Return the newest STATE record."""
        return self._boxes["state"].newest()[1]

    @property
    def machine(self) -> Machine:
        """Return the control process's state."""
        return Machine(int(self.state["machine"]))

    @property
    def news(self) -> np.ndarray:
        """Return the newest INFERENCE record."""
        return self._boxes["inference"].newest()[1]

    def stop_arm(self) -> None:
        """Ask for a ramped stop; the arm stays at rest until `allow`."""
        self._tell(stop=True)

    def allow(self) -> None:
        """Let the arm follow the policy again."""
        self._tell(stop=False)

    def confirm(self) -> None:
        """Say that a person has looked: needed after a user stop, and after too many tries to recover."""
        self._tell(confirm=int(self._operator["confirm"]) + 1)

    def run_episode(self, number: int, seed: int, watch: Watch, judge: Callable[[], str | None]) -> Outcome:
        """Run one episode; `judge` says how it ended, None while it goes on. Returns with the arm at rest."""
        began_s = self._moved_s = time.monotonic()
        self._steps = 0
        self._episode["number"], self._episode["seed"], self._episode["running"] = number, seed, True
        self._boxes["episode"].put(self._episode)
        ended, reason = "", ""
        try:
            while not ended:
                time.sleep(_POLL_S)
                ended, reason = self._ending(number, watch, judge, began_s)
        finally:
            self._episode["running"] = False
            self._boxes["episode"].put(self._episode)
        self._come_to_rest(number)
        return Outcome(ended=ended, steps=self._steps, seconds=time.monotonic() - began_s, reason=reason)

    def _ending(self, number: int, watch: Watch, judge: Callable[[], str | None], began_s: float) -> tuple[str, str]:
        now_s, news = time.monotonic(), self.news
        if int(news["episode"]) == number and int(news["step"]) > self._steps:
            self._steps, self._moved_s = int(news["step"]), now_s
        dead = self._dead()
        if dead:
            self.stop_arm()
            return "died", dead
        verdict = judge()
        if verdict:
            return verdict, ""
        if self._steps >= watch.horizon_steps:
            return "horizon", ""
        if now_s - self._moved_s > watch.trouble_s or now_s - began_s > watch.longest_s:
            return "trouble", text(news, "fault") or f"{self.machine.name.lower()}: {text(self.state)}"
        return "", ""

    def _dead(self) -> str:
        if not self.inference.alive():
            return self.inference.why_dead()
        if self.control is None or not self.control.is_alive():
            told = self.folder / ERROR_FILE
            return told.read_text() if told.exists() else "the control process has died"
        return ""

    def _come_to_rest(self, number: int) -> None:
        """Wait until the motion has ended and the policy's rows are on disk; a dead process is not waited for."""
        deadline_s = time.monotonic() + _REST_S
        still = (Machine.RUNNING, Machine.HOLDING, Machine.STOPPING, Machine.RECOVERING)
        while time.monotonic() < deadline_s:
            moving = self.control is not None and self.control.is_alive() and self.machine in still
            writing = self.inference.alive() and int(self.news["written"]) < number
            if not moving and not writing:
                return
            time.sleep(_POLL_S)
        self.stop_arm()
        raise ProcessDied(f"the arm did not come to rest within {_REST_S:g} s: {self.machine.name.lower()}")

    def _tell(self, **fields: Any) -> None:
        for name, value in fields.items():
            self._operator[name] = value
        self._operator["time_s"] = time.monotonic()
        self._boxes["operator"].put(self._operator)

    def _wait(self, done: Callable[[], bool], timeout_s: float, what: str) -> None:
        deadline_s = time.monotonic() + timeout_s
        while not done():
            dead = self._dead()
            if dead or time.monotonic() > deadline_s:
                raise ProcessDied(dead or f"{what} within {timeout_s:g} s")
            time.sleep(_POLL_S)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Ctrl-C twice, or a hang-up after a kill, must not cut the ramp short.
        main = _is_main_thread()
        before = {number: signal.signal(number, signal.SIG_IGN) for number in _ENDING_SIGNALS} if main else {}
        try:
            self._tell(stop=True, quit=True)
            if self.control is not None:
                self.control.join(_QUIT_S)
                if self.control.is_alive():
                    self.control.terminate()
                    self.control.join(_QUIT_S)
                if self.control.is_alive():
                    self.control.kill()
            if self.inference.process is not None:
                self.inference.__exit__()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _is_main_thread() -> bool:
    import threading

    return threading.current_thread() is threading.main_thread()
