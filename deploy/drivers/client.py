"""What do the three client libraries' drivers share: connect, surface what ended a motion, ramp down, recover, close?

A subclass says how its library does each step. What went wrong is told by where it happened, by the robot's mode and
error flags after it, and by the version it answers with; never by the words of a message, which change.
"""

from __future__ import annotations

import importlib
import time
from types import TracebackType
from typing import Any, Self

import numpy as np

from deploy.drivers import scheduling, versions
from deploy.drivers.base import (
    CommandRefused,
    ConnectionLost,
    DriverError,
    Floats,
    GripperDriver,
    IncompatibleVersion,
    Mode,
    NotInstalled,
    RealtimeRefused,
    ReflexError,
    RobotState,
    Unreachable,
    ended_by,
)
from deploy.drivers.gripper import Hand, WorkerGripper
from deploy.drivers.impedance import DAMPING, RAMP_HZ, STIFFNESS, gains, ramp
from deploy.drivers.library_state import convert, flags, mode_of
from deploy.realtime.limits import limits_for, limits_of

_AT_REST_RAD_S = 0.01
_SETTLE_S = 1.0
_FRESH_S = 0.1  # a target older than this is no longer passed at its velocity


class ClientDriver:
    """The common part. Settings: stiffness N m/rad, damping N m s/rad (7,); gripper=False looks for no hand."""

    name = ""
    module = ""  # of the library
    robots: tuple[str, ...] = ("fr3",)

    def __init__(
        self,
        *,
        robot: str,
        address: str,
        realtime: str = "ignore",
        stiffness: Any = STIFFNESS,
        damping: Any = DAMPING,
        gripper: bool = True,
    ) -> None:
        if robot not in self.robots:
            raise ValueError(f"driver {self.name} moves {' or '.join(self.robots)}, not {robot}")
        self.robot, self.address = robot, address
        self._enforce, self._wants_gripper = realtime == "enforce", gripper
        self._stiffness, self._damping = gains(stiffness, damping)
        self._limits = limits_of(robot)
        self._arm: Any = None
        self._motion: Any = None  # the library's tracker, controller or handler; it holds the robot's object alive
        self._gripper: WorkerGripper | None = None
        self._running = False
        self._pending: DriverError | None = None
        self._target: tuple[float, Floats, Floats] = (0.0, np.zeros(7), np.zeros(7))

    # --- what a library does, one method each -------------------------------------------------------------------------

    def _open(self) -> Any:
        """Return the library's robot, connected."""
        raise NotImplementedError

    def _read(self) -> Any:
        """Return the library's newest state."""
        raise NotImplementedError

    def _begin(self, q_rad: Floats) -> None:
        """Start the control thread, holding `q_rad`."""
        raise NotImplementedError

    def _send(self, q_rad: Floats, dq_rad_s: Floats) -> None:
        """Pass a target on."""
        raise NotImplementedError

    def _ended(self) -> bool:
        """Say whether the motion has ended by itself."""
        raise NotImplementedError

    def _end(self) -> None:
        """End the motion of an arm at rest."""
        raise NotImplementedError

    def _let_go(self) -> None:
        """Clear away what is left of a motion that has ended by itself; may raise whatever ended it."""
        raise NotImplementedError

    def _clear_errors(self) -> None:
        """Ask the robot to recover."""
        raise NotImplementedError

    def _open_hand(self) -> Hand:
        """Return the library's gripper, connected."""
        raise NotImplementedError

    def _abandon(self, arm: Any) -> None:
        """Do what a library needs before the object of a dead connection is freed."""

    # --- the protocol -------------------------------------------------------------------------------------------------

    def connect(self) -> None:
        """Connect, with a new object of the library: one that has timed out never works again."""
        self._drop()
        self._library = self._import()
        if self._enforce and not scheduling.realtime_kernel():  # libfranka 0.9 would say so at the first motion only
            raise self._no_realtime("/sys/kernel/realtime is not 1")
        with scheduling.unchanged():
            try:
                self._arm = self._open()
            except Exception as error:  # libraries raise their own types, RuntimeError, or bare Poco exceptions
                raise self._why_not_connected(error) from error
        self._pending, self._running = None, False
        self._limits = limits_for(self.robot, self.server_version())
        self.state()

    def state(self) -> RobotState:
        """Return the newest state; raise what ended the motion, once."""
        self._check_connected()
        found = self._state()
        if self._running and self._ended():
            self._finish()
        if self._pending is not None:
            pending, self._pending = self._pending, None
            raise pending
        return found

    def start(self) -> None:
        """Hold the measured position. Its control thread gets real-time priority where that is allowed."""
        self._check_connected()
        if self._running:
            raise CommandRefused("a motion runs already: stop() first")
        found = self._state()
        if found.mode is Mode.USER_STOPPED:
            raise ended_by(found.mode, found.errors)
        if found.mode is Mode.REFLEX:
            raise ReflexError(
                f"the robot is in reflex ({', '.join(found.errors)}): recover() before start()", found.errors
            )
        if found.mode is not Mode.IDLE:
            raise CommandRefused(f"the robot is in mode {found.mode.name.lower()}: it starts motions from idle only")
        self._target = (time.monotonic(), found.q_rad, np.zeros_like(found.q_rad))
        with scheduling.realtime():
            try:
                self._begin(found.q_rad)
            except Exception as error:
                raise self._why_ended(error) from error
        self._running = True

    def set_target(self, q_rad: Floats, dq_rad_s: Floats) -> None:
        """Say where to be now; without a motion nothing happens (`state` says why there is none)."""
        self._check_connected()
        self._target = (time.monotonic(), q_rad, dq_rad_s)
        if self._running:
            self._send(q_rad, dq_rad_s)

    def stop(self) -> None:
        """Bring the target to rest within limits, wait for the arm, then end the motion."""
        if not self._running or self._arm is None:
            return
        try:
            self._ramp_down()
            if not self._ended():
                self._running = False
                self._end()
                return
        except ConnectionLost as error:
            self._pending = error
            return
        except Exception as error:
            self._pending = self._why_ended(error)
        if self._running:
            self._finish()

    def recover(self) -> None:
        """Clear a reflex."""
        self._check_connected()
        if self._running and self._ended():
            self._finish()
        mode = self._state().mode
        if mode is Mode.USER_STOPPED:
            raise ended_by(mode, ())
        refusal: Exception | None = None
        try:
            self._clear_errors()
        except Exception as error:  # the robot's modes and flags say what it means
            refusal = error
        found = self._state()
        if found.mode is Mode.USER_STOPPED:
            raise ended_by(found.mode, found.errors) from refusal
        if found.mode is Mode.REFLEX or found.errors:
            raise ReflexError(
                f"the robot did not recover ({', '.join(found.errors)}): free the arm by hand, then recover()",
                found.errors,
            ) from refusal
        self._pending = None

    def gripper(self) -> GripperDriver | None:
        """Return the hand, None if nobody answers for one."""
        if self._gripper is None and self._wants_gripper:
            self._check_connected()
            try:
                self._gripper = WorkerGripper(self._open_hand())
            except Exception:  # no hand is mounted
                self._wants_gripper = False
        return self._gripper

    def server_version(self) -> int:
        """Return the version that library and robot have in common: libfranka connects to no other."""
        return versions.speaks(self.name)

    def close(self) -> None:
        """Stop, let go of arm and hand."""
        if self._arm is not None:
            self.stop()
        self._drop()

    def __enter__(self) -> Self:
        self.connect()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- parts --------------------------------------------------------------------------------------------------------

    def _import(self) -> Any:
        try:
            return importlib.import_module(self.module)
        except ImportError as error:
            raise NotInstalled(
                f"driver {self.name} needs {versions.DISTRIBUTIONS[self.name]} ({error}): "
                f"`{versions.install_command(self.name)}`"
            ) from error

    def _why_not_connected(self, error: Exception) -> DriverError:
        speaks, server = versions.speaks(self.name), versions.ask_until_free(self.address)
        if server is None:
            return Unreachable(
                f"no robot answers at {self.address}:{versions.PORT}: is it on, FCI activated in Desk, no other client "
                f"connected, the cable in the control cabinet (not the arm's base)? ({error})"
            )
        if server != speaks:
            return IncompatibleVersion(
                f"the robot at {self.address} speaks version {server}, {versions.DISTRIBUTIONS[self.name]} "
                f"{versions.installed(self.name)} speaks {speaks}: {versions.advice(server)}"
            )
        if self._enforce:
            return self._no_realtime(error)
        return DriverError(f"the robot at {self.address} answers, but {self.name} cannot connect: {error}")

    def _no_realtime(self, reason: Exception | str) -> RealtimeRefused:
        return RealtimeRefused(
            f"realtime=enforce: this kernel or this user's limits give no real time ({reason}): boot a PREEMPT_RT "
            "kernel and allow rtprio 99 and memlock, or use realtime=ignore"
        )

    def _check_connected(self) -> None:
        if self._arm is None:
            raise ConnectionLost("not connected: connect()")

    def _raw(self) -> Any:
        """Return the library's state; a read that fails means that the connection is dead."""
        try:
            return self._read()
        except Exception as error:  # franky lets a bare Poco exception through
            raise self._give_up(error) from error

    def _give_up(self, reason: Exception) -> ConnectionLost:
        """Let go of a connection that is dead."""
        dead, self._running, self._motion, self._arm = self._arm, False, None, None
        self._abandon(dead)
        return ConnectionLost(f"the connection to {self.address} is dead ({reason}): connect() anew")

    def _state(self) -> RobotState:
        return convert(self._raw())

    def _finish(self) -> None:
        """Note what ended the motion, for the next `state`."""
        self._running = False
        cause: Exception | None = None
        try:
            self._let_go()
        except Exception as error:  # asynchronous errors come out here
            cause = error
        why = self._why_ended(cause)
        if cause is not None and isinstance(why, CommandRefused) and self._arm is not None:
            # The library says that it failed, the robot that nothing has happened: what failed is what lies between
            # them. A robot that was silent for longer than the library's second answers again, and yet the two are
            # out of step.
            why = self._give_up(cause)
        self._pending = why

    def _why_ended(self, cause: Exception | None) -> DriverError:
        try:
            found = self._raw()
        except ConnectionLost as lost:
            return lost
        errors = flags(found.current_errors) or flags(found.last_motion_errors)
        why = ended_by(mode_of(found), errors)
        why.__cause__ = cause
        return why

    def _ramp_down(self) -> None:
        set_s, q, dq = self._target
        fresh = time.monotonic() - set_s < _FRESH_S
        for target in ramp(q, dq, self._limits) if fresh else [(q, np.zeros_like(q))]:
            if self._ended():
                return
            self._send(*target)
            time.sleep(1.0 / RAMP_HZ)
        until_s = time.monotonic() + _SETTLE_S
        while time.monotonic() < until_s and not self._ended():
            if np.abs(self._state().dq_rad_s).max() < _AT_REST_RAD_S:
                return
            time.sleep(1.0 / RAMP_HZ)

    def _drop(self) -> None:
        if self._gripper is not None:
            self._gripper.close()
            self._gripper = None
        self._running, self._motion, self._arm = False, None, None
