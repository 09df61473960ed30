"""Where does the emulated arm want to be in this millisecond: commands, their extrapolation, interpolation, braking?

All in joint space, rad and s. One object lives from a Move request to its end; `Brake` takes over when it ends.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from deploy.drivers.base import ARM_JOINTS, Floats
from deploy.emulator.guards import DT_S, check_desired, check_torque
from deploy.emulator.protocol import Controller, Generator
from deploy.realtime.limits import JointLimits

MAX_MISSES = 20  # cycles in a row without a command: communication_constraints_violation (FCI documentation)
_WAIT_FIRST = 1000  # cycles until the first command; a client that asked for a motion and is silent is lost


class Desired:
    """Position, velocity, acceleration that the arm's own controller follows, (7,) each."""

    def __init__(self, q: Floats, dq: Floats | None = None) -> None:
        self.q = np.array(q, float)
        self.dq = np.zeros(ARM_JOINTS) if dq is None else np.array(dq, float)
        self.ddq = np.zeros(ARM_JOINTS)

    def follow(self, acceleration: Floats) -> None:
        """Move on by one cycle at an acceleration."""
        self.ddq = acceleration
        self.dq = self.dq + DT_S * acceleration
        self.q = self.q + DT_S * self.dq

    def brake(self, limits: JointLimits) -> None:
        """Come to rest with half of the acceleration limit."""
        most = 0.5 * limits.acceleration_rad_s2
        self.follow(np.clip(-self.dq / DT_S, -most, most))


class Motion:
    """One motion of a client."""

    def __init__(self, request: Any, command_id: int, asynchronous: bool, desired: Desired) -> None:
        self.controller, self.generator = Controller(int(request["controller"])), Generator(int(request["generator"]))
        self.command_id, self.asynchronous = command_id, asynchronous
        self.max_velocity = np.array(request["max_velocity"]) if asynchronous else np.zeros(ARM_JOINTS)
        self.desired = desired
        self.torque = np.zeros(ARM_JOINTS)
        self.target = desired.q.copy()  # of the robot's own interpolation
        self.started = self.finished = False
        self.misses = self.waited = 0

    @property
    def torques(self) -> bool:
        """Say whether the client commands torques."""
        return self.controller == Controller.EXTERNAL

    def command(self, command: Any, limits: JointLimits) -> str | None:
        """Take a command record; return the error it makes, or None."""
        self.started, self.misses = True, 0
        finished = bool(command["motion_finished"])
        if "torque_finished" in command.dtype.names:
            finished = finished or bool(command["torque_finished"])
        self.finished = finished
        values = np.concatenate([command["q_c"], command["dq_c"], command["tau_J_d"]])
        if not np.isfinite(values).all():
            return "force_controller_desired_force_tolerance_violation"
        if self.asynchronous:
            if not finished:  # libfranka ends such a motion with a target of zeros
                self.target = np.clip(command["q_c"], limits.low_rad, limits.high_rad)
            return None
        if self.torques:
            before, self.torque = self.torque, command["tau_J_d"].copy()
            return None if finished else check_torque(limits, self.torque, before)
        return self._desire(command, limits)

    def miss(self) -> str | None:
        """Live through a cycle without a command; return the error it makes, or None."""
        if self.asynchronous:
            return None
        if not self.started:
            self.waited += 1
            return "communication_constraints_violation" if self.waited >= _WAIT_FIRST else None
        self.misses += 1
        if not self.torques:
            self.desired.follow(self.desired.ddq)
        return "communication_constraints_violation" if self.misses >= MAX_MISSES else None

    def interpolate(self, limits: JointLimits) -> None:
        """Move on towards the target of an asynchronous motion: trapezoids of velocity."""
        error, most = self.target - self.desired.q, 0.8 * limits.acceleration_rad_s2
        # Reach rest exactly at the target: the speed from which braking in whole cycles still ends there.
        reach = np.sqrt((0.5 * most * DT_S) ** 2 + 2.0 * most * np.abs(error)) - 0.5 * most * DT_S
        speed = np.sign(error) * np.minimum(np.minimum(reach, self.max_velocity), np.abs(error) / DT_S)
        self.desired.follow(np.clip((speed - self.desired.dq) / DT_S, -most, most))

    def _desire(self, command: Any, limits: JointLimits) -> str | None:
        desired, before = self.desired, self.desired.ddq
        positions = self.generator == Generator.JOINT_POSITION
        q = command["q_c"] if positions else desired.q + DT_S * command["dq_c"]
        dq = (q - desired.q) / DT_S
        ddq = (dq - desired.dq) / DT_S
        error = check_desired(limits, q, dq, ddq, before, positions=positions)
        if error is None:
            desired.q, desired.dq, desired.ddq = np.array(q), dq, ddq
        return error
