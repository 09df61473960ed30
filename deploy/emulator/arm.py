"""What does the arm's controller do with requests and commands: modes, motions, reflexes, recovery?

One call of `advance` is one millisecond of robot time: take the client's command or live without, check it, control the
plant. Requests are answered at once, a Move a second time when the motion ends.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np

from deploy.drivers.base import ARM_JOINTS, Floats
from deploy.emulator import protocol
from deploy.emulator.events import EventLog
from deploy.emulator.guards import Collision, check_measured
from deploy.emulator.motion import Desired, Motion
from deploy.emulator.plant import Plant
from deploy.emulator.protocol import Command, Controller, Generator, MoveStatus, RobotMode
from deploy.realtime.limits import JointLimits

# Joint stiffness of the internal controller, N m/rad (FCI documentation, default of setJointImpedance).
_STIFFNESS = np.array([3000.0, 3000.0, 3000.0, 2500.0, 2500.0, 2000.0, 2000.0])
_DAMPING_RATIO = 0.9
_FILTER = 0.1  # of the external torque, a cycle: 17 Hz
_SUCCESS_WINDOW = 100  # cycles of control_command_success_rate
_NOTHING_NM = 1e-3  # of external torque
_AT_REST_RAD_S = 1e-6  # of the desired velocity, after braking
_GUIDING_DAMPING = 2.0  # N m s/rad
Reply = tuple[int, int, bytes]  # command number, id, status and data


class Arm:
    """One arm behind one version of the interface."""

    def __init__(
        self, version: protocol.Version, plant: Plant, limits: JointLimits, events: EventLog, model: bytes
    ) -> None:
        """`model` is the URDF (protocol 10) or the model library (5) that the arm hands out."""
        self.version, self.plant, self.limits, self.events, self._model = version, plant, limits, events, model
        self.replies: deque[Reply] = deque()  # to send, besides direct answers
        self.time_ms = 0
        self.stiffness, self.collision = _STIFFNESS, Collision.default()
        self.ne_t_ee = self.ee_t_k = np.eye(4)
        self.load: Any = np.zeros((), protocol.LOAD)
        self.rest()

    def rest(self) -> None:
        """Stand still where the plant is, without errors and without a motion."""
        self.mode = RobotMode.IDLE
        self.motion: Motion | None = None
        self._asked: tuple[int, int, Any] | None = None  # a Move that waits until the arm is at rest
        self.errors: set[str] = set()
        self.reflex_reason: set[str] = set()
        self.must_recover = False
        self.desired = Desired(self.plant.q_rad)
        self.torque = np.zeros(ARM_JOINTS)
        self.torque_rate = np.zeros(ARM_JOINTS)
        self._saturated = False
        self.external = np.zeros(ARM_JOINTS)
        self.wrench = np.zeros(6)
        self._hits: deque[bool] = deque([True] * _SUCCESS_WINDOW, _SUCCESS_WINDOW)
        self.lost = self.longest_lost = self.cycles = 0
        self._measure_damping()

    @property
    def duty(self) -> bool:
        """Say whether the client owes an answer to every state."""
        return self.motion is not None and self.motion.started and not self.motion.asynchronous

    @property
    def success_rate(self) -> float:
        """Return the share of the last 100 cycles with a command in time; 0 outside a motion."""
        return sum(self._hits) / _SUCCESS_WINDOW if self.motion is not None else 0.0

    def advance(self, command: Any) -> None:
        """Live one millisecond; `command` is the record that answers the newest state, or None."""
        self.time_ms += 1
        if self.motion is not None:
            self._move(self.motion, command)
        if self.motion is None:
            self.desired.brake(self.limits)
            self._answer_late()
        torque = self._available(self._control())
        self.torque_rate = (torque - self.torque) * 1000.0
        self.torque = torque
        self.plant.step(torque)
        self._feel()

    # --- requests -----------------------------------------------------------------------------------------------------

    def request(self, number: int, command_id: int, payload: bytes) -> bytes | None:
        """Answer a request: status and data; None if the answer comes in `replies`. ValueError for an unknown one."""
        command = self.version.named(number)
        if command is None:
            raise ValueError(f"protocol {self.version.number} has no command {number}")
        self.events.add("request", command=command.name.lower(), id=command_id)
        if command is Command.MOVE:
            return self._start(number, command_id, payload)
        if command is Command.STOP_MOVE:
            self._end(MoveStatus.PREEMPTED)
            return bytes([protocol.SUCCESS])
        if command is Command.AUTOMATIC_ERROR_RECOVERY:
            # After the state that shows it: a client that reads one next is not told of the reflex again.
            self.replies.append((number, command_id, bytes([self._recover()])))
            return None
        if command in (Command.GET_ROBOT_MODEL, Command.LOAD_MODEL_LIBRARY):
            return bytes([protocol.SUCCESS]) + self._model
        if command is Command.GET_CARTESIAN_LIMIT:
            return bytes([protocol.SUCCESS]) + bytes(protocol.CARTESIAN_LIMIT_ANSWER)
        if self.motion is not None and command is not Command.SET_COLLISION_BEHAVIOR:
            return bytes([protocol.NOT_POSSIBLE])
        self._set(command, payload)
        return bytes([protocol.SUCCESS])

    def _start(self, number: int, command_id: int, payload: bytes) -> bytes | None:
        request = np.frombuffer(payload, self.version.move, 1)[0]
        reason = None
        if self.mode != RobotMode.IDLE or self.must_recover or self._asked is not None:
            reason = f"mode {self.mode.name.lower()}"
        elif int(request["generator"]) in (Generator.CARTESIAN_POSE, Generator.CARTESIAN_VELOCITY):
            reason = "Cartesian motion generators are not emulated: use joint motions or torques"
        if reason is not None:
            self.events.add("refused", command="move", reason=reason)
            return self.version.status_byte(MoveStatus.NOT_POSSIBLE)
        self._asked = (number, command_id, request)
        return self._started()

    def _started(self) -> bytes | None:
        """Start the motion that was asked for as soon as the arm is at rest; None until then."""
        assert self._asked is not None
        if np.abs(self.desired.dq).max() > _AT_REST_RAD_S:
            return None
        self._move_number, command_id, request = self._asked
        self._asked = None
        asynchronous = "asynchronous" in request.dtype.names and bool(request["asynchronous"])
        self.desired = Desired(self.desired.q)
        self.motion = Motion(request, command_id, asynchronous, self.desired)
        self.mode, self.reflex_reason = RobotMode.MOVE, set()
        self._hits.extend([True] * _SUCCESS_WINDOW)
        self._measure_damping()
        generator = self.motion.generator.name.lower()
        self.events.add("motion_started", generator=generator, asynchronous=asynchronous)
        return self.version.status_byte(MoveStatus.MOTION_STARTED)

    def _set(self, command: Command, payload: bytes) -> None:
        if command is Command.SET_COLLISION_BEHAVIOR:
            values = np.frombuffer(payload, protocol.COLLISION, 1)[0]
            fields = ("torque_lower_nominal", "torque_upper_nominal", "force_lower_nominal", "force_upper_nominal")
            self.collision = Collision(*(values[field].copy() for field in fields))
        elif command is Command.SET_JOINT_IMPEDANCE:
            self.stiffness = np.frombuffer(payload, "<f8", ARM_JOINTS).copy()
            self._measure_damping()
        elif command is Command.SET_EE_TO_K:
            self.ee_t_k = np.frombuffer(payload, "<f8", 16).reshape(4, 4).T.copy()
        elif command is Command.SET_NE_TO_EE:
            self.ne_t_ee = np.frombuffer(payload, "<f8", 16).reshape(4, 4).T.copy()
        elif command is Command.SET_LOAD:
            self.load = np.frombuffer(payload, protocol.LOAD, 1)[0].copy()

    def _recover(self) -> int:
        if self.mode not in (RobotMode.REFLEX, RobotMode.IDLE):
            return protocol.NOT_POSSIBLE
        self.mode, self.errors, self.must_recover = RobotMode.IDLE, set(), False
        self.events.add("recovered")
        return protocol.SUCCESS

    # --- what people and faults do ------------------------------------------------------------------------------------

    def reflex(self, error: str) -> None:
        """Stop by a reflex of this name."""
        if error not in protocol.ERRORS:
            raise ValueError(f"{error!r} is not an error of the interface; known: {', '.join(protocol.ERRORS)}")
        self.errors, self.reflex_reason = {error}, {error}
        felt = {"external_nm": self.external.round(2).tolist(), "wrench": self.wrench.round(2).tolist()}
        self.events.add("reflex", error=error, success_rate=self.success_rate, **felt, touching=self.plant.touching())
        self._end(MoveStatus.REFLEX_ABORTED)
        if self.mode != RobotMode.USER_STOPPED:
            self.mode = RobotMode.REFLEX

    def user_stop(self, pressed: bool) -> None:
        """Press or release the activation device. After a release a client must recover before it moves."""
        if pressed == (self.mode == RobotMode.USER_STOPPED):
            return
        self.events.add("user_stop", pressed=pressed)
        if pressed:
            self._end(MoveStatus.EMERGENCY_ABORTED)
            self.mode, self.must_recover = RobotMode.USER_STOPPED, True
        else:
            self.mode = RobotMode.REFLEX if self.errors else RobotMode.IDLE

    def guiding(self, on: bool) -> None:
        """Let a person's hand move the arm, or end that; needs a robot at rest."""
        if on and (self.mode != RobotMode.IDLE or self.motion is not None):
            raise ValueError(f"guiding starts from mode idle, the robot is in mode {self.mode.name.lower()}")
        if not on:
            self.plant.guide = None
        if on or self.mode == RobotMode.GUIDING:
            self.mode = RobotMode.GUIDING if on else RobotMode.IDLE
            self.desired = Desired(self.plant.q_rad, self.plant.dq_rad_s)
            self.events.add("guiding", on=on)

    def client_lost(self) -> None:
        """End the motion of a client whose connection is gone."""
        self._end(MoveStatus.ABORTED)
        self._asked = None
        self.replies.clear()

    # --- one millisecond ----------------------------------------------------------------------------------------------

    def _move(self, motion: Motion, command: Any) -> None:
        if command is not None:
            error = motion.command(command, self.limits)
        else:
            error = motion.miss()
        if motion.started and not motion.asynchronous:
            self.cycles += 1
            self._hits.append(command is not None)
            self.lost += command is None
            self.longest_lost = max(self.longest_lost, motion.misses)
            if motion.misses == 1:
                self.events.add("lost")
        if motion.asynchronous:
            motion.interpolate(self.limits)
        if error is None:
            error = check_measured(self.limits, self.plant.q_rad, self.plant.dq_rad_s)
        if error is None:
            error = self.collision.check(self.external, self.wrench)
        if error is not None:
            self.reflex(error)
        elif motion.finished:
            self._end(MoveStatus.SUCCESS)

    def _end(self, status: MoveStatus) -> None:
        motion, self.motion = self.motion, None
        if motion is None:
            return
        if motion.torques:
            self.desired = Desired(self.plant.q_rad, self.plant.dq_rad_s)
        self.mode = RobotMode.IDLE
        self.replies.append((self._move_number, motion.command_id, self.version.status_byte(status)))
        self.events.add("motion_ended", status=status.name.lower())

    def _answer_late(self) -> None:
        if self._asked is None:
            return
        number, command_id, _ = self._asked
        if self.mode == RobotMode.IDLE:
            answer = self._started()
        else:
            answer, self._asked = self.version.status_byte(MoveStatus.NOT_POSSIBLE), None
        if answer is not None:
            self.replies.append((number, command_id, answer))

    def _control(self) -> Floats:
        plant, desired = self.plant, self.desired
        if self.mode == RobotMode.GUIDING:
            self.desired = Desired(plant.q_rad)
            return plant.coriolis_nm - _GUIDING_DAMPING * plant.dq_rad_s
        if self.motion is not None and self.motion.torques:
            self.desired = self.motion.desired = Desired(plant.q_rad, plant.dq_rad_s)
            return self.motion.torque
        feedback = self.stiffness * (desired.q - plant.q_rad) + self._damping * (desired.dq - plant.dq_rad_s)
        return feedback + plant.coriolis_nm + plant.inertia_times(desired.ddq)

    def _available(self, torque: Floats) -> Floats:
        cut = self.plant.available(torque)
        saturated = bool((cut != torque).any())
        if saturated and not self._saturated:
            self.events.add("torque_saturated", wanted_nm=(torque + self.plant.gravity_nm).round(1).tolist())
        self._saturated = saturated
        return cut

    def _measure_damping(self) -> None:
        self._damping = 2.0 * _DAMPING_RATIO * np.sqrt(self.stiffness * self.plant.inertia_diagonal())

    def _feel(self) -> None:
        self.external = self.external + _FILTER * (self.plant.external_nm - self.external)
        if np.abs(self.external).max() < _NOTHING_NM:
            self.external, self.wrench = np.zeros(ARM_JOINTS), np.zeros(6)
        else:
            self.wrench = self.plant.external_wrench(self.external)

    @property
    def state_modes(self) -> tuple[int, int]:
        """Return motion generator mode and controller mode as the state shows them."""
        motion = self.motion
        return (0, Controller.OTHER) if motion is None else (motion.generator + 1, motion.controller)
