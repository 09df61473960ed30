"""How does a hand whose library blocks for seconds take commands at once, and forget those that a newer one replaces?

Two threads beside the control loop: one waits for the hand's reports (10 Hz), one runs the newest command. A command
that comes while another runs stops that one first. The library's calls must let other Python threads run meanwhile
(`remote_hand.py` is for the one that does not).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

from deploy.drivers.base import ConnectionLost, GripperState

REACHED_M = 0.002  # a command that ends further away has failed
ANY_WIDTH_M = 0.08  # how much wider than asked a held thing may be: the hand's stroke
THINNEST_M = 0.001  # closed to less than this holds nothing
SILENT_S = 3.0  # without a report for so long, the hand is lost
_FIRST_REPORT_S = 5.0


class Hand(Protocol):
    """A client library's gripper: calls return when the hand is done, or raise."""

    def read(self) -> tuple[float, float, bool]:
        """Wait for the next report; return width, greatest width (m), grasped."""

    def move(self, width_m: float, speed_m_s: float) -> bool:
        """Move; say whether it got there."""

    def grasp(self, width_m: float, speed_m_s: float, force_n: float, inner_m: float, outer_m: float) -> bool:
        """Grasp; say whether something between width - inner and width + outer is held."""

    def stop(self) -> bool:
        """Stop what runs."""

    def close(self) -> None:
        """Disconnect."""


class WorkerGripper:
    """A `GripperDriver` over a blocking hand."""

    def __init__(self, hand: Hand) -> None:
        self._hand = hand
        self._state: GripperState | None = None
        self._lost: str | None = None
        self._failure: str | None = None
        self._wanted: tuple[str, Callable[[], bool]] | None = None
        self._running = self._closing = False
        self._stopping = 0  # stops on their way: the next command waits for them, or they would stop it too
        self._changed = threading.Condition()
        self._threads = [
            threading.Thread(target=work, name=f"gripper-{name}", daemon=True)
            for name, work in (("reports", self._read), ("commands", self._work))
        ]
        for thread in self._threads:
            thread.start()

    def state(self) -> GripperState:
        """Return the newest report. ConnectionLost when none comes any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._state is not None or self._lost is not None, _FIRST_REPORT_S)
            if self._lost is not None or self._state is None:
                raise ConnectionLost(f"the gripper's connection is dead: {self._lost or 'no report came'}; connect()")
            return self._state

    def move(self, width_m: float, speed_m_s: float) -> None:
        """Open or close to a width."""
        self._command(f"move to {width_m:.3f} m", lambda: self._hand.move(width_m, speed_m_s))

    def grasp(self, width_m: float, speed_m_s: float, force_n: float) -> None:
        """Close until something is held, at any width."""
        width = max(width_m, THINNEST_M)
        inner, outer = width - THINNEST_M, ANY_WIDTH_M
        self._command("grasp", lambda: self._hand.grasp(width, speed_m_s, force_n, inner, outer))

    def stop(self) -> None:
        """Stop the fingers where they are."""
        self._command("stop", None)

    def busy(self) -> bool:
        """Say whether a command waits or runs."""
        with self._changed:
            return self._running or self._wanted is not None

    def failure(self) -> str | None:
        """Return why the last finished command failed."""
        with self._changed:
            return self._failure

    def close(self) -> None:
        """Stop what runs, end both threads and disconnect."""
        with self._changed:
            running, self._closing, self._wanted = self._running, True, None
            self._stopping += running
            self._changed.notify_all()
        if running:
            self._interrupt()
        for thread in self._threads:
            thread.join(2.0)
        self._hand.close()

    def _command(self, name: str, call: Callable[[], bool] | None) -> None:
        with self._changed:
            self._wanted = (name, call or self._hand.stop)
            running = self._running
            self._stopping += running
            self._changed.notify_all()
        if running:  # a thread of its own: the library's stop waits for the hand's answer
            threading.Thread(target=self._interrupt, daemon=True).start()

    def _interrupt(self) -> None:
        try:
            self._hand.stop()
        except Exception as error:
            with self._changed:
                self._failure = f"stop failed: {error}"
        finally:
            with self._changed:
                self._stopping -= 1
                self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or (self._wanted is not None and not self._stopping))
                if self._closing or self._wanted is None:
                    return
                name, call = self._wanted
                self._wanted, self._running = None, True
            try:
                failure = None if call() else f"{name} did not succeed"
            except Exception as error:  # whatever type the library has for a refused command
                failure = f"{name} failed: {error}"
            with self._changed:
                self._running, self._failure = False, failure
                self._changed.notify_all()

    def _read(self) -> None:
        heard_s = time.monotonic()
        while not self._closing:
            try:
                width, most, grasped = self._hand.read()
            except Exception as error:  # one late report is no loss: libfranka waits a second for each
                with self._changed:
                    self._lost = str(error) if time.monotonic() - heard_s > SILENT_S else None
                    self._changed.notify_all()
                time.sleep(0.02)
                continue
            heard_s = time.monotonic()
            with self._changed:
                self._state = GripperState(time_s=heard_s, width_m=width, max_width_m=most, grasped=grasped)
                self._lost = None
                self._changed.notify_all()
