"""How does a policy's gripper entry, a number 20 times a second, become few commands to a slow hand?

Hysteresis makes it binary, newest wins while the hand must not be commanded again yet, and a thread of its own talks
to the hand: some clients block for as long as the fingers move.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from deploy.drivers.base import DriverError, GripperDriver, GripperState

_POLL_S = 0.02


@dataclass(frozen=True, kw_only=True)
class GripperSettings:
    """When to close and open, and how."""

    close_above: float = 0.3  # of the action, -1 open .. +1 closed
    open_below: float = -0.3
    interval_s: float = 0.6  # between two commands
    speed_m_s: float = 0.1  # of the width
    force_n: float = 20.0

    def __post_init__(self) -> None:
        """Refuse thresholds without hysteresis and values of nothing."""
        if not -1.0 < self.open_below < self.close_above < 1.0:
            raise ValueError(
                f"expected -1 < open_below < close_above < 1, got {self.open_below} and {self.close_above}"
            )
        for name in ("interval_s", "speed_m_s", "force_n"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above zero, got {getattr(self, name)}")


class Hysteresis:
    """Turns actions into open (-1) and closed (+1); 0 before the first clear one."""

    def __init__(self, settings: GripperSettings) -> None:
        self._settings = settings
        self.target = 0.0

    def update(self, action: float) -> float:
        """Take an action and return the target."""
        if action > self._settings.close_above:
            self.target = 1.0
        elif action < self._settings.open_below:
            self.target = -1.0
        return self.target


class GripperWorker:
    """The thread that talks to the hand. `want` and `state` never wait."""

    def __init__(self, gripper: GripperDriver, settings: GripperSettings) -> None:
        self._gripper, self._settings = gripper, settings
        self._hysteresis = Hysteresis(settings)
        self.allowed = False  # set while the arm is in control: after a user stop the hand keeps still, too
        self.state: GripperState | None = None
        self.commands = 0  # that were given
        self.failures: dict[str, int] = {}  # reason -> how often
        self._given = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="gripper", daemon=True)
        self._thread.start()

    @property
    def target(self) -> float:
        """Return what is wanted: -1 open, +1 closed, 0 nothing yet."""
        return self._hysteresis.target

    def want(self, action: float) -> None:
        """Say what the policy wants; the newest counts."""
        self._hysteresis.update(action)

    def _work(self) -> None:
        next_s, running = 0.0, False
        while not self._ended.wait(_POLL_S):
            try:
                self.state = self._gripper.state()
                if running and not self._gripper.busy():
                    running = False
                    self._note(self._gripper.failure())
                if self.allowed and self.target != self._given and time.monotonic() >= next_s:
                    self._command(self.target)
                    next_s, running = time.monotonic() + self._settings.interval_s, True
            except DriverError as error:
                self._note(type(error).__name__)
                if self._ended.wait(self._settings.interval_s):
                    return

    def _command(self, target: float) -> None:
        self._given = target
        self.commands += 1
        if target > 0:
            self._gripper.grasp(0.0, self._settings.speed_m_s, self._settings.force_n)
        else:
            width_m = self.state.max_width_m if self.state else 0.08
            self._gripper.move(width_m, self._settings.speed_m_s)

    def _note(self, reason: str | None) -> None:
        if reason is not None:
            self.failures[reason] = self.failures.get(reason, 0) + 1

    def close(self, timeout_s: float = 1.0) -> None:
        """End the thread; the fingers stay as they are, so nothing that is held falls."""
        self._ended.set()
        self._thread.join(timeout_s)
