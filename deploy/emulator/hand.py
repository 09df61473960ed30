"""What does the hand do with its commands: how do fingers move, when is something grasped, when has a command failed?

A Franka Hand: both fingers on one motor, 0 to 80 mm, up to 0.1 m/s and 70 N (Franka Hand manual). The fingers are the
scene's; this moves their servos' command.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from deploy.emulator import protocol
from deploy.emulator.events import EventLog
from deploy.emulator.plant import DT_S, Plant
from deploy.emulator.protocol import GripperCommand, GripperStatus

MAX_WIDTH_M, MAX_SPEED_M_S, MAX_FORCE_N = 0.08, 0.1, 70.0
REPORT_MS = 100  # the hand reports at about 10 Hz
_REACHED_M = 0.001
_AT_REST_M_S = 0.002
_SETTLED_MS = 150  # at rest for so long, a command has done what it can
_HOLD_LEAD_M = 0.08  # how far a grasp's command may lead the fingers: the servo's force is then at its limit
Reply = tuple[int, int, int, bytes]  # connection, command number, id, status


class Hand:
    """The fingers' controller."""

    def __init__(self, plant: Plant, events: EventLog) -> None:
        self._plant, self._events = plant, events
        self.replies: deque[Reply] = deque()
        self.stuck, self.slow = False, 1.0  # faults
        self.rest()

    def rest(self) -> None:
        """Forget what was running."""
        self._running: tuple[int, int, GripperCommand] | None = None
        self._target_m, self._speed_m_s = self._plant.finger_width_m(), 0.0
        self._epsilon = (0.0, 0.0)
        self._width_wanted_m, self._at_rest_ms, self._before_m = 0.0, 0, self._target_m
        self.grasped = False

    def request(self, connection: int, number: int, command_id: int, payload: bytes) -> None:
        """Take a command; its answer comes in `replies` when it has ended."""
        command = GripperCommand(number)
        self._events.add("gripper", command=command.name.lower())
        self._finish(GripperStatus.ABORTED)
        self._running, self._at_rest_ms, self.grasped = (connection, command_id, command), 0, False
        plant = self._plant
        plant.finger_force_n = plant.hand_force_n
        plant.finger_command_m = 0.5 * plant.finger_width_m()  # not from where a grasp's lead has put it
        if command is GripperCommand.STOP:
            self._target_m, self._speed_m_s = plant.finger_width_m(), MAX_SPEED_M_S
            self._finish(GripperStatus.SUCCESS)
        elif command is GripperCommand.HOMING:
            self._target_m, self._speed_m_s = MAX_WIDTH_M, MAX_SPEED_M_S
        elif command is GripperCommand.MOVE:
            values = np.frombuffer(payload, protocol.GRIPPER_MOVE, 1)[0]
            self._target_m, self._speed_m_s = float(values["width"]), float(values["speed"])
        elif command is GripperCommand.GRASP:
            values = np.frombuffer(payload, protocol.GRASP, 1)[0]
            self._target_m, self._speed_m_s = -_HOLD_LEAD_M, float(values["speed"])
            self._width_wanted_m = float(values["width"])
            self._epsilon = float(values["epsilon_inner"]), float(values["epsilon_outer"])
            plant.finger_force_n = float(np.clip(values["force"], 0.0, MAX_FORCE_N))
        if self._running and command is not GripperCommand.GRASP and not 0.0 <= self._target_m <= MAX_WIDTH_M:
            self._target_m = plant.finger_width_m()
            self._finish(GripperStatus.FAIL)
        self._speed_m_s = min(max(self._speed_m_s, 0.0), MAX_SPEED_M_S)

    def advance(self) -> None:
        """Live one millisecond."""
        plant = self._plant
        width = plant.finger_width_m()
        if not self.stuck:
            step = 0.5 * self._speed_m_s * self.slow * DT_S  # a finger's share
            change = 0.5 * self._target_m - plant.finger_command_m
            plant.finger_command_m += min(max(change, -step), step)
        else:
            plant.finger_command_m = 0.5 * width
        speed, self._before_m = abs(width - self._before_m) / DT_S, width
        self._at_rest_ms = self._at_rest_ms + 1 if speed < _AT_REST_M_S else 0
        if self._running is not None:
            self._judge(self._running[2], width)
        elif self.grasped and not plant.finger_blocked():
            self.grasped = False
            self._events.add("grasp_lost", width_m=width)

    def report(self, time_ms: int) -> bytes:
        """Return the packed state."""
        state = np.zeros(1, protocol.GRIPPER_STATE)
        state[0] = (time_ms, self._plant.finger_width_m(), MAX_WIDTH_M, self.grasped, 30)
        return state.tobytes()

    def drop(self, connection: int) -> None:
        """Forget whom to answer: that client is gone."""
        if self._running is not None and self._running[0] == connection:
            self._running = None

    def _judge(self, command: GripperCommand, width: float) -> None:
        if command is not GripperCommand.GRASP and abs(width - self._target_m) < _REACHED_M:
            self._finish(GripperStatus.SUCCESS)
        elif self._at_rest_ms >= _SETTLED_MS and self._started():
            low, high = self._width_wanted_m - self._epsilon[0], self._width_wanted_m + self._epsilon[1]
            held = command is GripperCommand.GRASP and low < width < high and self._plant.finger_blocked()
            self.grasped = held
            self._finish(GripperStatus.SUCCESS if held else GripperStatus.UNSUCCESSFUL)

    def _started(self) -> bool:
        """Say whether the servo has had something to do: a ramp begins slower than `at rest` ends."""
        plant = self._plant
        return self.stuck or abs(plant.finger_command_m - 0.5 * self._target_m) < 1e-6 or plant.finger_saturated()

    def _finish(self, status: GripperStatus) -> None:
        if self._running is None:
            return
        connection, command_id, command = self._running
        self._running = None
        self.replies.append((connection, int(command), command_id, int(status).to_bytes(2, "little")))
        width_m = self._plant.finger_width_m()
        self._events.add("gripper_done", command=command.name.lower(), status=status.name.lower(), width_m=width_m)
