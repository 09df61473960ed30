"""How fast does the robot's clock run, seen from this host?

On an arm as fast as the host's. An emulator in lockstep waits for its client, so on a busy machine its clock falls
behind; a policy that kept to the host's clock would then command faster motion than it was trained for.
"""

from __future__ import annotations

from collections import deque

_WINDOW_S = 1.0
_SLOWEST = 0.1


class RobotClock:
    """Fed with pairs of host and robot time; `rate` is robot seconds a host second, 0.1 to 1."""

    def __init__(self) -> None:
        self.rate = 1.0
        self._seen: deque[tuple[float, float]] = deque()

    def observe(self, time_s: float, robot_time_s: float) -> float:
        """Take the newest state's two times; return the robot's."""
        if self._seen and robot_time_s < self._seen[-1][1]:  # another robot, or one that was restarted
            self._seen.clear()
        if not self._seen or time_s > self._seen[-1][0]:
            self._seen.append((time_s, robot_time_s))
        while time_s - self._seen[0][0] > _WINDOW_S:
            self._seen.popleft()
        host_s, robot_s = (self._seen[-1][axis] - self._seen[0][axis] for axis in (0, 1))
        if host_s > 0.2 * _WINDOW_S:
            self.rate = min(max(robot_s / host_s, _SLOWEST), 1.0)
        return robot_time_s
