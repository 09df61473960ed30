"""Does this computer give a 1 kHz control thread what it needs: kernel, priority, locked memory, a steady clock rate?

The vendor's requirements (libfranka docs, system_requirements and real_time_kernel). Reads files and limits only.
"""

from __future__ import annotations

import os
import platform
import resource
from dataclasses import dataclass
from pathlib import Path

from deploy.drivers import scheduling

OK, WARNING, FAILED = "ok", "warning", "failed"
_LIMITS = "/etc/security/limits.conf"
_ALLOW = f"as root add `@realtime - rtprio 99` to {_LIMITS}, put the user into the group realtime, log in again"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the report."""

    name: str
    verdict: str  # ok, warning, failed
    text: str
    help: str = ""  # what to do


def check_host(enforce: bool, priority: int = 0) -> list[Finding]:
    """Return kernel, rtprio, memlock, governor and cores.

    `enforce` makes a missing real time a failure; so does a `priority` of the control loop that is not allowed.
    """
    missing = FAILED if enforce else WARNING
    asked = [_priority(priority)] if priority else []
    return [_kernel(missing), _rtprio(missing), *asked, _memlock(), _governor(), _cores()]


def _kernel(missing: str) -> Finding:
    if scheduling.realtime_kernel():
        return Finding(name="kernel", verdict=OK, text=f"{platform.release()}, real-time")
    return Finding(
        name="kernel",
        verdict=missing,
        text=f"{platform.release()}, no real time (/sys/kernel/realtime is not 1)",
        help="boot a PREEMPT_RT kernel for a real arm (Ubuntu: `sudo pro enable realtime-kernel`); NVIDIA's driver "
        "does not support it: keep the policy on another computer, or use realtime=ignore",
    )


def _rtprio(missing: str) -> Finding:
    if scheduling.permitted(scheduling.PRIORITY):
        return Finding(name="rtprio", verdict=OK, text=f"{scheduling.PRIORITY} allowed")
    soft = resource.getrlimit(resource.RLIMIT_RTPRIO)[0]
    return Finding(
        name="rtprio",
        verdict=missing,
        text=f"{soft} allowed; libfranka's control thread takes {scheduling.PRIORITY}",
        help=_ALLOW,
    )


def _priority(priority: int) -> Finding:
    if scheduling.permitted(priority):
        return Finding(name="priority", verdict=OK, text=f"{priority} allowed")
    return Finding(
        name="priority",
        verdict=FAILED,
        text=f"no permission for realtime_priority={priority} of the control loop",
        help=f"{_ALLOW}; or set realtime_priority=0",
    )


def _memlock() -> Finding:
    soft = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    if os.geteuid() == 0 or soft == resource.RLIM_INFINITY or soft >= 100 << 20:
        return Finding(name="memlock", verdict=OK, text="enough")
    return Finding(
        name="memlock",
        verdict=WARNING,
        text=f"{soft >> 10} KiB may be locked into memory",
        help=f"as root add `@realtime - memlock 102400` to {_LIMITS} and log in again",
    )


def _governor() -> Finding:
    files = sorted(Path("/sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_governor"))
    found = {file.read_text().strip() for file in files}
    if not found:
        return Finding(name="governor", verdict=OK, text="this machine has no frequency scaling")
    if found == {"performance"}:
        return Finding(name="governor", verdict=OK, text="performance")
    return Finding(
        name="governor",
        verdict=WARNING,
        text=", ".join(sorted(found)),
        help="`sudo cpupower frequency-set -g performance`: clock changes cost cycles",
    )


def _cores() -> Finding:
    count = len(os.sched_getaffinity(0))
    if count >= 4:
        return Finding(name="cores", verdict=OK, text=f"{count}")
    return Finding(
        name="cores",
        verdict=WARNING,
        text=f"{count}: control thread, control loop, cameras and policy share them",
        help="four or more, or the policy on another computer",
    )
