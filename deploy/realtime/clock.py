"""How does a loop wake up at fixed times, and what does it do when it could not?

Deadlines are absolute, so lateness does not add up. A loop that was kept from running skips the deadlines that it
missed: a burst of ticks to catch up would command motions of the past.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Iterator

_SET_PARENT_DEATH_SIGNAL, _SET_TIMER_SLACK = 1, 29  # linux/prctl.h


class Ticker:
    """Waits for the next deadline of a fixed period."""

    def __init__(self, rate_hz: float) -> None:
        if not 1.0 <= rate_hz <= 1000.0:
            raise ValueError(f"expected a rate of 1 to 1000 Hz, got {rate_hz}")
        self.period_s = 1.0 / rate_hz
        self.deadline_s = time.monotonic()
        self.missed = 0  # deadlines that passed while something else ran

    def wait(self) -> float:
        """Sleep until the next deadline and return the time at which this thread ran again."""
        self.deadline_s += self.period_s
        now_s = time.monotonic()
        if now_s > self.deadline_s + self.period_s:
            late = int((now_s - self.deadline_s) / self.period_s)
            self.missed += late
            self.deadline_s += late * self.period_s
        if now_s < self.deadline_s:
            time.sleep(self.deadline_s - now_s)
        return time.monotonic()


def sharpen_timer() -> None:
    """Let this thread's sleeps end on time: Linux rounds them up by 50 us otherwise."""
    ctypes.CDLL(None, use_errno=True).prctl(_SET_TIMER_SLACK, 1, 0, 0, 0)


def die_with_parent(parent: int) -> None:
    """Ask the kernel for SIGTERM when the parent process ends; raise it now if that already happened."""
    ctypes.CDLL(None, use_errno=True).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        signal.raise_signal(signal.SIGTERM)


def raise_priority(priority: int) -> None:
    """Give this thread SCHED_FIFO; PermissionError, with what to do, where that is not allowed."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
    except PermissionError as error:
        raise PermissionError(
            f"no permission for real-time priority {priority}: add '@realtime - rtprio 99' to "
            "/etc/security/limits.conf and your user to the group realtime, log in anew; or set realtime_priority=0"
        ) from error


@contextlib.contextmanager
def ordinary_scheduling() -> Iterator[None]:
    """Run as any thread does, so that what is started inside does not inherit this one's priority."""
    policy, priority = os.sched_getscheduler(0), os.sched_getparam(0)
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, priority)
