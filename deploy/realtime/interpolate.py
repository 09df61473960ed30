"""Where should the arm be now, given plans that arrive late, out of order, and that disagree?

A chunk is a plan of time-stamped waypoints. Between two of them the path is the cubic with their positions and
velocities. Waypoints whose time has passed are dropped by their stamps, which compensates for the latency of camera and
inference, whatever it was. A new chunk takes over at once, but its difference from what was asked for until now is
faded out over `blend_s`: neither position nor velocity jumps at a seam.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from deploy.drivers.base import ARM_JOINTS
from deploy.realtime.limits import Floats
from deploy.realtime.records import MAX_WAYPOINTS

FUTURE_S = 0.05  # one clock for all processes: a stamp farther ahead than this is not a stamp
OLD_S = 0.5  # a plan from a robot state older than this is about a robot that is somewhere else by now


class Wish(NamedTuple):
    """What the plans ask for at one instant."""

    q_rad: Floats  # (7,)
    dq_rad_s: Floats  # (7,)
    gripper: float  # -1 open .. +1 closed
    starved: bool  # the plan is at its end


def _observed_s(chunk: np.ndarray) -> float:
    """Return when the robot was as the plan assumes; that it was made, where it does not say."""
    return float(chunk["state_s"]) or float(chunk["made_s"])


class ChunkFollower:
    """Holds the newest plan. `accept` takes chunk records, `at` says what they ask for."""

    def __init__(self, blend_s: float) -> None:
        if not 0.0 < blend_s <= 1.0:
            raise ValueError(f"blend_s must be above 0 and at most 1 s, got {blend_s}")
        self._blend_s = blend_s
        self.made_s = -np.inf  # stamp of the newest chunk that was accepted
        self.observed_s = -np.inf  # of the robot state that it was made from
        self.capture_s = 0.0
        self.rejected: dict[str, int] = {}
        self._times = np.zeros(0)
        self._q = self._dq = np.zeros((0, ARM_JOINTS))
        self._gripper = np.zeros(0)
        self._seam_s, self._gap, self._gap_speed = 0.0, np.zeros(ARM_JOINTS), np.zeros(ARM_JOINTS)

    def accept(self, chunk: np.ndarray, now_s: float, present: tuple[Floats, Floats]) -> str | None:
        """Take over a CHUNK record (0-d); return why not, None if it was taken.

        `present` is the position and velocity to start from: what was asked for, or the command of an arm at rest.
        """
        reason = self._why_not(chunk, now_s)
        if reason is not None:
            self.rejected[reason] = self.rejected.get(reason, 0) + 1
            return reason
        self.made_s, self.capture_s = float(chunk["made_s"]), float(chunk["capture_s"])
        self.observed_s = _observed_s(chunk)
        count = int(chunk["count"])
        times, q, dq = chunk["time_s"][:count], chunk["q_rad"][:count], chunk["dq_rad_s"][:count]
        self._gripper = chunk["gripper"][:count].copy()
        if times[0] - now_s > self._blend_s:  # nothing planned for now: go from here to the first waypoint
            times = np.concatenate([[now_s], times])
            q, dq = np.concatenate([present[0][None], q]), np.concatenate([present[1][None], dq])
            self._gripper = np.concatenate([self._gripper[:1], self._gripper])
        self._times, self._q, self._dq = times.copy(), q.copy(), dq.copy()
        self._seam_s, self._gap, self._gap_speed = now_s, np.zeros(ARM_JOINTS), np.zeros(ARM_JOINTS)
        planned = self.at(now_s)
        self._gap, self._gap_speed = present[0] - planned.q_rad, present[1] - planned.dq_rad_s
        return None

    def _why_not(self, chunk: np.ndarray, now_s: float) -> str | None:
        made_s, count = float(chunk["made_s"]), int(chunk["count"])
        if not np.isfinite(made_s) or made_s > now_s + FUTURE_S:
            return "no valid stamp"
        if made_s <= self.made_s:
            return "out of order"
        if not now_s - _observed_s(chunk) <= OLD_S:
            return "from an old state"
        if not 0 < count <= MAX_WAYPOINTS:
            return "no waypoints"
        for name in ("time_s", "q_rad", "dq_rad_s", "gripper"):
            if not np.isfinite(chunk[name][:count]).all():
                return "not finite"
        if not (np.diff(chunk["time_s"][:count]) > 0).all():
            return "times do not rise"
        return None

    def at(self, now_s: float) -> Wish:
        """Return what is asked for at a time; before any chunk there is nothing to ask (IndexError)."""
        times = self._times
        ahead = int(np.searchsorted(times, now_s, side="right"))
        if ahead == 0:  # at most blend_s before the plan begins
            q, dq = self._q[0] + (now_s - times[0]) * self._dq[0], self._dq[0]
        elif ahead == len(times):
            q, dq = self._q[-1], np.zeros(ARM_JOINTS)
        else:
            q, dq = self._between(ahead, now_s)
        gripper = float(self._gripper[max(ahead - 1, 0)])
        share = (now_s - self._seam_s) / self._blend_s
        if share < 1.0:
            gap, gap_speed = self._fade(share)
            q, dq = q + gap, dq + gap_speed
        return Wish(q, dq, gripper, bool(now_s > times[-1]))

    def _between(self, ahead: int, now_s: float) -> tuple[Floats, Floats]:
        """Return position and velocity on the cubic Hermite piece that ends at waypoint `ahead`."""
        start_s, span_s = self._times[ahead - 1], self._times[ahead] - self._times[ahead - 1]
        s = (now_s - start_s) / span_s
        q0, q1 = self._q[ahead - 1], self._q[ahead]
        m0, m1 = span_s * self._dq[ahead - 1], span_s * self._dq[ahead]
        q = q0 + s * (m0 + s * (3 * (q1 - q0) - 2 * m0 - m1 + s * (2 * (q0 - q1) + m0 + m1)))
        dq = (m0 + s * (2 * (3 * (q1 - q0) - 2 * m0 - m1) + s * 3 * (2 * (q0 - q1) + m0 + m1))) / span_s
        return q, dq

    def _fade(self, share: float) -> tuple[Floats, Floats]:
        """Return what is left of the seam's difference: the cubic from it and its speed to nothing and rest."""
        s, span_s = share, self._blend_s
        gap, slope = self._gap, span_s * self._gap_speed
        left = gap + s * (slope + s * (-3 * gap - 2 * slope + s * (2 * gap + slope)))
        speed = (slope + s * (2 * (-3 * gap - 2 * slope) + s * 3 * (2 * gap + slope))) / span_s
        return left, speed
