"""How old is the newest plan, for the robot?

What a stale plan can do, it does in the robot's time. On an arm that is the host's. An emulator in lockstep is slower
on a busy machine, and the policy, whose period runs on the robot's clock, is slower with it: by the host's clock its
plans would look stale although the arm has hardly moved.
"""

from __future__ import annotations


class PlanAge:
    """Told when a plan is taken over; `robot_s` says how old it is."""

    def __init__(self) -> None:
        self._taken_s: float | None = None  # robot time, at the first tick after it was taken over
        self._age_taken_s = float("inf")

    def taken(self, made_s: float, now_s: float) -> None:
        """Begin anew with a plan made at `made_s`; until now it aged by the host's clock, never the slower one."""
        self._taken_s, self._age_taken_s = None, now_s - made_s

    def robot_s(self, robot_time_s: float | None) -> float:
        """Return the age in the robot's time; infinite without a plan or where that clock says nothing about it.

        `robot_time_s` is the newest state's, None without one. A clock that went back is another robot's.
        """
        if robot_time_s is None:
            return float("inf")
        if self._taken_s is None:
            self._taken_s = robot_time_s
        passed_s = robot_time_s - self._taken_s
        return self._age_taken_s + passed_s if passed_s >= 0.0 else float("inf")
