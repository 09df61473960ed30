"""How good is the connection to the robot: cycles in time, and how late do its messages come?

Read-only unless `hold`: then the tracker holds the arm still, which is the only way to see the robot's own count of
commands in time (it is 0 outside a motion).
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tqdm import tqdm

from deploy.drivers.base import RobotDriver
from deploy.host_checks import FAILED, OK, WARNING, Finding

EDGES_MS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
# The vendor's communication_test calls less than 0.9 insufficient; 43 lost of 10 000 is what users call a good link.
_GOOD, _ENOUGH = 0.99, 0.9
_CYCLE_S = 0.001


@dataclass(frozen=True, kw_only=True)
class Link:
    """What a communication test measured."""

    seconds: float
    states: int
    received: float  # share of the robot's milliseconds whose state this loop saw
    longest_gap_ms: float  # robot time between two states seen
    lateness_ms: list[float] = field(repr=False)  # of each state: host time beyond robot time since the one before
    success_rate: float | None  # mean of the robot's count; None without a motion
    lowest_success_rate: float | None

    def histogram(self) -> dict[str, int]:
        """Return how many states came how late."""
        counts = np.histogram(self.lateness_ms, [-math.inf, *EDGES_MS, math.inf])[0]
        names = [f"< {edge:g} ms" for edge in EDGES_MS] + [f">= {EDGES_MS[-1]:g} ms"]
        return dict(zip(names, counts.tolist(), strict=True))

    def report(self) -> dict[str, Any]:
        """Return everything for JSON."""
        late = np.percentile(self.lateness_ms, [50, 99, 99.9, 100])
        return {
            "seconds": self.seconds,
            "states": self.states,
            "received": self.received,
            "longest_gap_ms": self.longest_gap_ms,
            "lateness_ms": dict(zip(("p50", "p99", "p99.9", "max"), late.round(3).tolist(), strict=True)),
            "histogram": self.histogram(),
            "success_rate": self.success_rate,
            "lowest_success_rate": self.lowest_success_rate,
        }


def measure_link(driver: RobotDriver, seconds: float, hold: bool) -> Link:
    """Read every state that can be had for `seconds`; `hold` starts a motion that stands still, and stops it."""
    if hold:
        driver.start()
    try:
        times, robot, rates = _read_states(driver, seconds, hold)
    finally:
        if hold:
            driver.stop()
    gaps_s = np.diff(robot)
    late_ms = 1e3 * (np.diff(times) - gaps_s)
    span_s = robot[-1] - robot[0]
    return Link(
        seconds=round(times[-1] - times[0], 3),
        states=len(robot),
        received=min(1.0, round((len(robot) - 1) * _CYCLE_S / span_s, 5)),
        longest_gap_ms=round(1e3 * float(gaps_s.max()), 3),
        lateness_ms=late_ms.tolist(),
        success_rate=round(float(np.mean(rates)), 5) if hold else None,
        lowest_success_rate=round(float(np.min(rates)), 5) if hold else None,
    )


def _read_states(driver: RobotDriver, seconds: float, hold: bool) -> tuple[list[float], list[float], list[float]]:
    times: list[float] = []
    robot: list[float] = []
    rates: list[float] = []
    began_s = time.monotonic()
    with tqdm(
        total=seconds, desc="communication test", unit="s", bar_format="{l_bar}{bar}| {n:.0f}/{total:.0f} s"
    ) as bar:
        while (now_s := time.monotonic()) - began_s < seconds or len(robot) < 3:
            if now_s - began_s > seconds + 5.0:
                raise TimeoutError("the robot's clock stands still")
            state = driver.state()
            if robot and state.robot_time_s <= robot[-1]:
                time.sleep(0.0002)  # in a motion the newest state is at hand; wait for the next
                continue
            times.append(state.time_s)
            robot.append(state.robot_time_s)
            if hold and now_s - began_s > 0.2:  # the count is over 100 cycles of the motion
                rates.append(state.command_success_rate)
            if len(robot) % 200 == 0:
                bar.update(min(seconds, now_s - began_s) - bar.n)
    return times, robot, rates or [0.0]


def judge_link(link: Link) -> list[Finding]:
    """Return the lines of the report about a link."""
    late = link.report()["lateness_ms"]
    rate = link.received if link.success_rate is None else link.success_rate
    what = "states seen" if link.success_rate is None else "commands in time (the robot's count)"
    # A reader in Python misses states that the control thread would not: without a motion this can only warn.
    poor = FAILED if link.success_rate is not None else WARNING
    verdict = OK if rate >= _GOOD else WARNING if rate >= _ENOUGH else poor
    advice = (
        "" if verdict == OK else "direct cable to the control cabinet, no switch, nothing else heavy on this computer"
    )
    return [
        Finding(
            name="communication",
            verdict=verdict,
            text=f"{rate:.2%} {what} in {link.seconds:.0f} s, longest gap {link.longest_gap_ms:.0f} ms",
            help=advice,
        ),
        Finding(
            name="lateness",
            verdict=OK if late["p99"] < 1.0 else WARNING,
            text=f"p50 {late['p50']:.2f}, p99 {late['p99']:.2f}, p99.9 {late['p99.9']:.2f}, max {late['max']:.1f} ms",
            help="" if late["p99"] < 1.0 else "the host, not the network, is usual: kernel, governor, load",
        ),
    ]
