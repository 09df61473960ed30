"""How is every tick kept without the loop ever touching a disk, and what do the ticks say at the end?

The loop fills the next record of a ring in memory; a thread writes what is full to a file. If the disk stands still
for longer than the ring holds, records are lost and counted, and the loop goes on.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np

from deploy.realtime.records import TICK, Guard, Machine

_FLUSH_S = 0.25
_SECONDS = 20  # that the ring holds
_PERCENTILES = (50.0, 99.0, 99.9)


class TickLog:
    """A ring of TICK records with a thread that writes them to `path`."""

    def __init__(self, path: Path, rate_hz: float) -> None:
        self.path = path
        self._ring = np.zeros(int(rate_hz * _SECONDS) + 1, TICK)
        self._filled = self._written = self._dropped = self._torn = 0  # counts of records; one thread changes each
        self._ended = threading.Event()
        self._file = open(path, "wb", buffering=0)  # noqa: SIM115
        self._thread = threading.Thread(target=self._flush_until_closed, name="ticklog", daemon=True)
        self._thread.start()

    @property
    def lost(self) -> int:
        """Records that the ring or the disk had no room for."""
        return self._dropped + self._torn

    def record(self) -> np.ndarray:
        """Return the record to fill (0-d view); `keep` makes it part of the log."""
        view: np.ndarray = self._ring[self._filled % len(self._ring), ...]
        return view

    def keep(self) -> None:
        """Keep the record that `record` returned."""
        if self._filled + 1 - self._written >= len(self._ring):
            self._dropped += 1
            return
        self._filled += 1

    def _flush_until_closed(self) -> None:
        while not self._ended.wait(_FLUSH_S):
            self._flush()

    def _flush(self) -> None:
        size, filled = len(self._ring), self._filled
        while self._written < filled:
            first = self._written % size
            last = min(first + filled - self._written, size)
            if not self._write(self._ring[first:last]):
                self._torn += last - first
            self._written += last - first

    def _write(self, records: np.ndarray) -> bool:
        """Write records whole or not at all: one that is torn would shift all that follow."""
        whole, left = self._file.tell(), memoryview(records.data.cast("B"))
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError:  # no space: the arm goes on, and the count of lost records tells
            self._file.seek(whole)
            self._file.truncate()
            return False
        return True

    def close(self) -> None:
        """Write what is left."""
        self._ended.set()
        self._thread.join()
        self._flush()
        self._file.close()


def read_ticks(path: Path) -> np.ndarray:
    """Return the records of a log; a torn one at the end is left out."""
    size = path.stat().st_size // TICK.itemsize
    return np.memmap(path, TICK, "r", shape=(size,)) if size else np.zeros(0, TICK)


def report_of(ticks: np.ndarray, period_s: float) -> dict[str, Any]:
    """Return the figures of a run: periods, guards, starvation, capture-to-command latency, time in each state."""
    start_s, machine = ticks["start_s"], ticks["machine"]
    due = (machine == Machine.RUNNING) | ticks["starved"]  # ticks in which the arm should follow a plan
    # The first tick that follows a chunk: from the capture of its newest frame to the target's hand-over.
    first = np.flatnonzero(np.diff(ticks["chunk_sequence"], prepend=0) != 0)
    first = first[(machine[first] == Machine.RUNNING) & (ticks["chunk_capture_s"][first] > 0)]
    latency_s = ticks["end_s"][first] - ticks["chunk_capture_s"][first]
    edges = period_s * 1e3 * np.array([0, 0.5, 0.9, 0.95, 0.99, 1.01, 1.05, 1.1, 1.5, 2, 3, 5, 10, np.inf])
    periods_ms = np.diff(start_s) * 1e3
    counts = np.histogram(periods_ms, edges)[0]
    return {
        "ticks": len(ticks),
        "period_ms": _distribution(periods_ms),
        "period_histogram_ms": {"edges": [float(edge) for edge in edges[:-1]], "counts": counts.tolist()},
        "work_ms": _distribution((ticks["end_s"] - start_s) * 1e3),
        # Of the ticks in which a plan was due: without a fresh one, and those whose plan had run out altogether.
        "starved_share": float(ticks["starved"][due].mean()) if due.any() else None,
        "plan_ended_share": float(ticks["plan_ended"][due].mean()) if due.any() else None,
        "capture_to_command_ms": _distribution(latency_s * 1e3),
        "guards": {str(guard.name).lower(): int(((ticks["guards"] & guard) > 0).sum()) for guard in Guard},
        "seconds_in": {state.name.lower(): float((machine == state).sum() * period_s) for state in Machine},
    }


def _distribution(values: np.ndarray) -> dict[str, float | int]:
    if not len(values):
        return {"n": 0}
    named = {f"p{percent:g}": float(np.percentile(values, percent)) for percent in _PERCENTILES}
    return {"n": len(values), **named, "max": float(values.max())}
