"""Which thread of this process runs in real time, and which must not?

libfranka since 0.18 raises the thread that constructs `Robot` to SCHED_FIFO 99, and every thread started later inherits
that: inference, BLAS pools, cameras. The control thread of a client library should have it, and is made by inheritance
too. So a driver connects and starts its control thread at the highest priority and puts the calling thread back after.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

PRIORITY = 99  # what libfranka takes for its control thread


def realtime_kernel() -> bool:
    """Say whether libfranka takes this kernel for a real-time one."""
    flag = Path("/sys/kernel/realtime")
    return flag.exists() and flag.read_text().strip() == "1"


def current() -> tuple[int, int]:
    """Return this thread's policy (os.SCHED_*) and priority."""
    return os.sched_getscheduler(0), os.sched_getparam(0).sched_priority


def permitted(priority: int) -> bool:
    """Say whether a thread of this process may take SCHED_FIFO at a priority, by trying it for an instant."""
    with unchanged():
        try:
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
        except PermissionError:
            return False
    return True


@contextlib.contextmanager
def unchanged() -> Iterator[None]:
    """Give this thread back the scheduling it came with, whatever a library does to it inside."""
    policy, priority = current()
    try:
        yield
    finally:
        if current() != (policy, priority):
            os.sched_setscheduler(0, policy, os.sched_param(priority))


@contextlib.contextmanager
def realtime() -> Iterator[bool]:
    """Run at the highest priority, so that a control thread started inside inherits it; yield whether it is allowed."""
    with unchanged():
        try:
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))
        except PermissionError:
            yield False
        else:
            yield True
