"""Which state is the control process in, and what does it do next? A machine without clock, robot or threads.

    IDLE ──chunk──► RUNNING ◄──fresh── HOLDING        any of them ──reflex──► REFLEX ──try──► RECOVERING ──► IDLE
                       │ ──stale or hold──► │                     ──user stop──► USER_STOPPED ──confirmed──► RECOVERING
                       └──── stop ───► STOPPING ──at rest──► IDLE ──connection lost──► LOST ──try──► IDLE

Recovery and reconnection are tried a bounded number of times with doubling pauses; after that an operator's
confirmation begins them anew. After a user stop nothing happens without one.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from deploy.drivers.base import ConnectionLost, DriverError, Mode, UserStopped
from deploy.realtime.records import Machine

IN_CONTROL = (Machine.RUNNING, Machine.HOLDING, Machine.STOPPING)


class Do(enum.Enum):
    """What the controller has to do after a step."""

    NOTHING = enum.auto()
    START = enum.auto()  # begin a motion
    END = enum.auto()  # end it: the arm is at rest
    RECOVER = enum.auto()
    CONNECT = enum.auto()


@dataclass(frozen=True, kw_only=True)
class MachineSettings:
    """When to give up waiting, and how often to try again."""

    stale_s: float = 0.1  # age of the newest chunk from which the arm holds: two policy periods
    stop_s: float = 0.5  # age from which the motion ends
    tries: int = 3  # to recover or to connect, before an operator has to confirm
    pause_s: float = 0.5  # before the first try; doubles with each
    forget_s: float = 5.0  # of undisturbed running after which tries count from zero

    def __post_init__(self) -> None:
        """Refuse settings under which the arm would move on a stale action."""
        if not 0.0 < self.stale_s <= self.stop_s <= 0.5:
            raise ValueError(
                f"an arm holds after stale_s and stops after stop_s: 0 < stale_s <= stop_s <= 0.5 s, "
                f"got {self.stale_s} and {self.stop_s}; a policy slower than 4 Hz must send longer chunks more often"
            )
        if self.tries < 0 or not self.pause_s > 0 or not self.forget_s > 0:
            raise ValueError(f"expected tries >= 0, pause_s > 0 and forget_s > 0, got {self}")


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What the controller saw in a tick."""

    now_s: float
    chunk_made_s: float  # stamp of the newest accepted chunk, -inf without one
    observed_s: float | None = None  # of the robot state that it was made from; None: as old as the chunk
    stop: bool = False  # by the operator, by the policy's stop flag, or because the process ends
    hold: bool = False
    confirmations: int = 0
    at_rest: bool = True  # the command
    mode: Mode = Mode.IDLE
    failure: DriverError | None = None  # what the driver raised


class StateMachine:
    """Holds the state; `step` takes what was seen and returns what to do."""

    def __init__(self, settings: MachineSettings) -> None:
        self.settings = settings
        self.state = Machine.IDLE
        self.reason = ""  # of the last failure
        self.tries = 0
        self.total_tries = 0
        self._next_try_s = 0.0
        self._confirmed = 0  # confirmations that are used up
        self._barrier_s = float("-inf")  # chunks of what was seen before this moment start nothing
        self._undisturbed_s = 0.0

    @property
    def gave_up(self) -> bool:
        """Say whether all tries are used: only an operator's confirmation helps now."""
        return self.state in (Machine.REFLEX, Machine.LOST) and self.tries >= self.settings.tries

    def step(self, seen: Seen) -> Do:
        """Go to the next state."""
        if seen.failure is not None:
            return self._fail(seen, seen.failure)
        if self.state is not Machine.LOST and seen.mode in (Mode.USER_STOPPED, Mode.REFLEX):
            known = {Machine.USER_STOPPED, Machine.REFLEX, Machine.RECOVERING}
            if seen.mode is Mode.USER_STOPPED:
                known.remove(Machine.REFLEX)  # or the arm would recover by itself once it is released
            if self.state not in known:
                text = "the user stop is pressed" if seen.mode is Mode.USER_STOPPED else "the robot is in reflex"
                kind = UserStopped if seen.mode is Mode.USER_STOPPED else DriverError
                return self._fail(seen, kind(text))
        steps = {
            Machine.IDLE: self._idle,
            Machine.RUNNING: self._running,
            Machine.HOLDING: self._holding,
            Machine.STOPPING: self._stopping,
            Machine.REFLEX: self._waiting,
            Machine.LOST: self._waiting,
            Machine.USER_STOPPED: self._user_stopped,
            Machine.RECOVERING: self._recovering,
        }
        return steps[self.state](seen)

    def _fail(self, seen: Seen, failure: DriverError) -> Do:
        self.reason = str(failure)
        self._barrier_s = seen.now_s
        self._confirmed = seen.confirmations  # only one that comes after the failure counts
        if isinstance(failure, UserStopped):
            self.state = Machine.USER_STOPPED
        else:
            self.state = Machine.LOST if isinstance(failure, ConnectionLost) else Machine.REFLEX
            self._next_try_s = seen.now_s + self.settings.pause_s * 2**self.tries
        return Do.NOTHING

    def _idle(self, seen: Seen) -> Do:
        fresh = seen.now_s - seen.chunk_made_s <= self.settings.stale_s
        observed_s = seen.chunk_made_s if seen.observed_s is None else seen.observed_s
        if seen.stop or seen.hold or not fresh or observed_s <= self._barrier_s:
            return Do.NOTHING
        self.state = Machine.RUNNING
        self._undisturbed_s = seen.now_s
        return Do.START

    def _running(self, seen: Seen) -> Do:
        if seen.now_s - self._undisturbed_s > self.settings.forget_s:
            self.tries = 0
        if seen.stop:
            self.state = Machine.STOPPING
        elif seen.hold or seen.now_s - seen.chunk_made_s > self.settings.stale_s:
            self.state = Machine.HOLDING
        return Do.NOTHING

    def _holding(self, seen: Seen) -> Do:
        age_s = seen.now_s - seen.chunk_made_s
        if seen.stop or age_s > self.settings.stop_s:
            self.state = Machine.STOPPING
        elif not seen.hold and age_s <= self.settings.stale_s:
            self.state = Machine.RUNNING
        return Do.NOTHING

    def _stopping(self, seen: Seen) -> Do:
        if not seen.at_rest:
            return Do.NOTHING
        self.state = Machine.IDLE
        self._barrier_s = seen.now_s
        return Do.END

    def _waiting(self, seen: Seen) -> Do:
        if self.gave_up:
            if seen.confirmations <= self._confirmed:
                return Do.NOTHING
            self._confirmed, self.tries = seen.confirmations, 0
        if seen.now_s < self._next_try_s or seen.stop:
            return Do.NOTHING
        self.tries += 1
        self.total_tries += 1
        lost = self.state is Machine.LOST
        self.state = Machine.RECOVERING
        return Do.CONNECT if lost else Do.RECOVER

    def _user_stopped(self, seen: Seen) -> Do:
        if seen.confirmations <= self._confirmed or seen.stop:
            return Do.NOTHING
        self._confirmed = seen.confirmations
        self.state = Machine.RECOVERING
        return Do.RECOVER

    def _recovering(self, seen: Seen) -> Do:
        self.state = Machine.IDLE
        self._barrier_s = seen.now_s
        return Do.NOTHING
