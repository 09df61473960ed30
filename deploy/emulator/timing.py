"""How regular is the emulator's clock: histograms of period, work and the client's reply?"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

_EDGES_US = np.unique(np.round(np.geomspace(1.0, 1e6, 241), 2))  # 6 % apart
QUANTILES = (0.5, 0.99, 0.999)


class Histogram:
    """Counts of durations, and the largest one."""

    def __init__(self) -> None:
        self._counts = np.zeros(len(_EDGES_US) + 1, np.int64)
        self._largest_us = 0.0

    def add(self, duration_s: float) -> None:
        """Count a duration."""
        duration_us = duration_s * 1e6
        self._counts[int(_EDGES_US.searchsorted(duration_us))] += 1
        self._largest_us = max(self._largest_us, duration_us)

    def report(self) -> dict[str, float]:
        """Return count, quantiles (upper edges of their bins) and maximum, microseconds."""
        total = int(self._counts.sum())
        reached = np.cumsum(self._counts)
        figures: dict[str, float] = {"count": total}
        for quantile in QUANTILES:
            index = min(int(reached.searchsorted(quantile * total)), len(_EDGES_US) - 1)
            figures[f"p{quantile * 100:g}_us"] = round(min(float(_EDGES_US[index]), self._largest_us), 1)
        return {**figures, "max_us": round(self._largest_us, 1)}


class Timing:
    """Period between ticks; work: all but waiting; wait: for tick and client; reply: from a state to its answer."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        self.period, self.work, self.wait, self.reply = Histogram(), Histogram(), Histogram(), Histogram()
        self._before_s = self._sent_s = 0.0

    def tick(self, start_s: float, sent_s: float, due_s: float, end_s: float) -> None:
        """Count a tick: its start, state sent, answer in or due, end."""
        if self._before_s:
            self.period.add(start_s - self._before_s)
        self._before_s = start_s
        self.work.add((sent_s - start_s) + (end_s - due_s))
        self.wait.add(due_s - sent_s)

    def sent(self) -> None:
        """Remember when a state went out."""
        self._sent_s = time.monotonic()

    def answered(self) -> None:
        """Count the first answer to that state."""
        if self._sent_s:
            self.reply.add(time.monotonic() - self._sent_s)
            self._sent_s = 0.0

    def report(self) -> dict[str, Any]:
        """Return all histograms' figures."""
        names = ("period", "work", "wait", "reply")
        return {name: getattr(self, name).report() for name in names}
