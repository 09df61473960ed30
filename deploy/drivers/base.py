"""What does the loop ask of an arm, whichever client library moves it?

A driver tracks joint positions: `start` begins to hold the measured position, `set_target` says where to be now, `stop`
ends in a ramp. What the arm does between two targets (torque or position at 1 kHz) is the library's C++ or the robot's
own controller, never Python. Targets come from `deploy/realtime`, already limited; a driver does not judge them.

Joint values rad, rad/s, N m, in the order of the arm; lengths m; times s. `time_s` is this host's monotonic clock
(`time.monotonic`), the one clock of the project; `robot_time_s` is the robot's own.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

ARM_JOINTS = 7


class Mode(enum.IntEnum):
    """What the robot says it does (robot_mode of the Franka Control Interface)."""

    OTHER = 0
    IDLE = 1
    MOVE = 2
    GUIDING = 3
    REFLEX = 4
    USER_STOPPED = 5
    RECOVERING = 6


@dataclass(frozen=True, kw_only=True, eq=False)
class RobotState:
    """What the arm measured last. Arrays are copies that nobody writes to again."""

    time_s: float  # when this host received it
    robot_time_s: float
    q_rad: Floats  # (7,)
    dq_rad_s: Floats  # (7,)
    q_desired_rad: Floats  # (7,) the robot's own command of this cycle
    tau_nm: Floats  # (7,) measured
    tau_external_nm: Floats  # (7,) estimated, without model and load
    wrench_n_nm: Floats  # (6,) estimated external force and torque at the stiffness frame, base axes
    mode: Mode
    errors: tuple[str, ...]  # libfranka's names of the active errors, such as "joint_velocity_violation"
    command_success_rate: float  # of the last 100 cycles; 0 outside a motion


@dataclass(frozen=True, kw_only=True)
class GripperState:
    """What the gripper said last; the hand reports at about 10 Hz."""

    time_s: float
    width_m: float  # between the fingers
    max_width_m: float
    grasped: bool


class DriverError(Exception):
    """The arm or its library refused or failed; the message says what to do. Subclasses say what it means."""


class NotInstalled(DriverError):
    """The client library is missing; the message has the pip command."""


class Unreachable(DriverError):
    """Nobody answers at the address."""


class IncompatibleVersion(DriverError):
    """Client and robot speak different protocol versions; the message has both and the package to install."""


class RealtimeRefused(DriverError):
    """The kernel or its limits do not give what `realtime=enforce` asks for."""


class ReflexError(DriverError):
    """The robot stopped itself: a limit, a collision, or commands that came too late. `recover` may help."""

    def __init__(self, message: str, errors: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.errors = errors


class CommunicationViolation(ReflexError):
    """The reflex of 20 lost cycles in a row."""


class UserStopped(DriverError):
    """The activation device (the user stop) is pressed, or was: an operator must confirm before anything moves."""


class CommandRefused(DriverError):
    """The robot does not take this command in its present mode."""


class ConnectionLost(DriverError):
    """The connection is dead; only a new `connect` helps."""


def ended_by(mode: Mode, errors: tuple[str, ...]) -> DriverError:
    """Return what a motion ended by, told by the mode and the error flags that the robot shows after it."""
    if mode is Mode.USER_STOPPED:
        return UserStopped("the user stop was pressed: release it, then an operator must confirm before anything moves")
    if "communication_constraints_violation" in errors:
        return CommunicationViolation(
            "20 cycles in a row were lost: look at the network, the kernel and what else runs here, then recover()",
            errors,
        )
    if mode is Mode.REFLEX or errors:
        return ReflexError(f"the robot stopped itself: {', '.join(errors) or 'no error named'}; recover()", errors)
    return CommandRefused(f"the motion has ended and the robot names no error (mode {mode.name.lower()}): start() anew")


class GripperDriver(Protocol):
    """The hand. Every call returns at once; a new command replaces the one that runs."""

    def state(self) -> GripperState:
        """Return the newest state; never waits for the next report."""

    def move(self, width_m: float, speed_m_s: float) -> None:
        """Open or close to a width."""

    def grasp(self, width_m: float, speed_m_s: float, force_n: float) -> None:
        """Close until something is held with `force_n`, at any width."""

    def stop(self) -> None:
        """Stop the fingers where they are."""

    def busy(self) -> bool:
        """Say whether a command is still running."""

    def failure(self) -> str | None:
        """Return why the last finished command failed, None if it did what it should (width reached, thing held)."""


class RobotDriver(Protocol):
    """An arm that follows joint positions. Use as a context manager: leaving it stops the arm and closes."""

    name: str  # franky, pylibfranka, panda, twin
    robot: str  # fr3, fer: whose limits hold

    def connect(self) -> None:
        """Connect, or connect anew after `ConnectionLost`. Moves nothing.

        Leaves this thread with the scheduling it had: libfranka raises the thread that constructs `Robot` to
        SCHED_FIFO 99, which every later thread of the process would inherit (facts: deploy docs).
        """

    def state(self) -> RobotState:
        """Return the newest state, within 2 ms. Raises what ended the motion, once: `ReflexError`, `UserStopped`..."""

    def start(self) -> None:
        """Begin to hold the measured position; `set_target` moves it from there. Needs mode IDLE."""

    def set_target(self, q_rad: Floats, dq_rad_s: Floats) -> None:
        """Say where to be now and how fast to pass there, (7,) each. Newest wins; takes microseconds.

        A silent caller leaves the arm holding the last target: the watchdog is the control loop's, not the driver's.
        """

    def stop(self) -> None:
        """End the motion in a ramp and hold still; nothing happens if none runs. Never raises for a robot at rest."""

    def recover(self) -> None:
        """Clear a reflex; `UserStopped` if the device is still pressed, `ReflexError` if the robot refuses."""

    def gripper(self) -> GripperDriver | None:
        """Return the hand, None without one."""

    def server_version(self) -> int:
        """Return the version of the interface that the robot speaks."""

    def close(self) -> None:
        """Stop if needed and disconnect; twice is once."""

    def __enter__(self) -> Self:
        """Connect."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
