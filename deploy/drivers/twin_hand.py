"""How do the twin's fingers take commands: the emulated Franka Hand without a network."""

from __future__ import annotations

import threading
import time

import numpy as np

from deploy.drivers.base import GripperState
from deploy.drivers.gripper import ANY_WIDTH_M, THINNEST_M
from deploy.emulator import protocol
from deploy.emulator.events import EventLog
from deploy.emulator.hand import MAX_WIDTH_M, Hand
from deploy.emulator.plant import Plant
from deploy.emulator.protocol import GripperCommand, GripperStatus


class TwinGripper:
    """A `GripperDriver` over the emulator's hand; stepped by the twin under its lock."""

    def __init__(self, plant: Plant, lock: threading.RLock) -> None:
        self._plant, self._lock = plant, lock
        self._hand = Hand(plant, EventLog(None, lambda: plant.ticks))
        self._failure: str | None = None
        self.rest()

    def rest(self) -> None:
        """Forget what was running."""
        with self._lock:
            self._hand.rest()
            self._hand.replies.clear()
            self._command, self._number = "", 0
            self._busy, self._failure = False, None

    def advance(self) -> None:
        """Live one millisecond."""
        self._hand.advance()
        while self._hand.replies:
            number, _, _, status = self._hand.replies.popleft()
            if number == self._number:  # not one that a newer command has replaced
                done = int.from_bytes(status, "little") == GripperStatus.SUCCESS
                self._busy, self._failure = False, None if done else f"{self._command} did not succeed"

    def state(self) -> GripperState:
        """Return width and grasp of now."""
        with self._lock:
            width = self._plant.finger_width_m()
            return GripperState(
                time_s=time.monotonic(), width_m=width, max_width_m=MAX_WIDTH_M, grasped=self._hand.grasped
            )

    def move(self, width_m: float, speed_m_s: float) -> None:
        """Open or close to a width."""
        self._request(GripperCommand.MOVE, np.array([(width_m, speed_m_s)], protocol.GRIPPER_MOVE).tobytes())

    def grasp(self, width_m: float, speed_m_s: float, force_n: float) -> None:
        """Close until something is held, at any width."""
        record = np.zeros(1, protocol.GRASP)
        record["width"], record["speed"], record["force"] = max(width_m, THINNEST_M), speed_m_s, force_n
        record["epsilon_inner"] = max(width_m, THINNEST_M) - THINNEST_M
        record["epsilon_outer"] = ANY_WIDTH_M
        self._request(GripperCommand.GRASP, record.tobytes())

    def stop(self) -> None:
        """Stop the fingers where they are."""
        self._request(GripperCommand.STOP, b"")

    def busy(self) -> bool:
        """Say whether a command is still running."""
        return self._busy

    def failure(self) -> str | None:
        """Return why the last finished command failed."""
        return self._failure

    def _request(self, command: GripperCommand, payload: bytes) -> None:
        with self._lock:
            self._number += 1
            self._command, self._busy = command.name.lower(), True
            self._hand.request(self._number, int(command), 0, payload)
