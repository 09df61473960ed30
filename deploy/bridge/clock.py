"""What does the robot's computer's clock show now, seen from the policy's computer?

Both have a monotonic clock with a zero of its own. A ping that left here at a and came back at c was answered there at
b: then b lies between a and c, and (a + c) / 2 is wrong by at most half of the round trip. Of the last pings the one
with the shortest round trip counts.
"""

from __future__ import annotations

from collections import deque

import numpy as np

_PINGS = 100
_FEWEST = 5  # before anything is sent
# Fields that are times of time.monotonic(), by record.
STATE_TIMES = ("time_s", "gripper_time_s")
CHUNK_TIMES = ("made_s", "capture_s", "state_s", "time_s")
INFERENCE_TIMES = ("capture_s", "begin_s", "end_s")


class Offset:
    """Robot's time minus this computer's, s. One thread observes, any may read."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, float]] = deque(maxlen=_PINGS)  # round trip, offset
        self._best = (0.0, 0.0)
        self.known = False  # enough pings came back

    def observe(self, sent_s: float, robot_s: float, back_s: float) -> None:
        """Take a ping's three times."""
        if back_s >= sent_s and np.isfinite([sent_s, robot_s]).all():
            self._seen.append((back_s - sent_s, robot_s - 0.5 * (sent_s + back_s)))
            self._best = min(self._seen)
            self.known = len(self._seen) >= _FEWEST

    @property
    def seconds(self) -> float:
        """Return the offset."""
        return self._best[1]

    @property
    def error_s(self) -> float:
        """Return by how much it can be wrong."""
        return 0.5 * self._best[0]


def shift(record: np.ndarray, fields: tuple[str, ...], by_s: float) -> None:
    """Move times of a record (0-d) to another clock, in place; a time of 0 was never written and stays."""
    for name in fields:
        record[name] = np.where(record[name] != 0.0, record[name] + by_s, 0.0)
