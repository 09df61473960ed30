"""What happened in the emulator? A list of events in memory, and the same as JSON lines in a file."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

_KEPT = 20_000  # events in memory; the file has them all


class EventLog:
    """Numbered events: `number`, `time_s` (this host's monotonic clock), `robot_ms`, `event`, and its own entries."""

    def __init__(self, path: Path | None, robot_ms: Callable[[], int]) -> None:
        self._file: TextIO | None = path.open("w", encoding="utf-8", buffering=1) if path else None
        self._robot_ms, self._count = robot_ms, 0
        self._events: deque[dict[str, Any]] = deque(maxlen=_KEPT)

    def add(self, event: str, **entries: Any) -> None:
        """Note an event; entries are numbers, texts and lists."""
        self._count += 1
        line = {"number": self._count, "time_s": time.monotonic(), "robot_ms": self._robot_ms(), "event": event}
        self._events.append({**line, **entries})
        if self._file is not None:
            self._file.write(json.dumps(self._events[-1]) + "\n")

    def since(self, number: int) -> list[dict[str, Any]]:
        """Return the events after a number, oldest first."""
        return [event for event in self._events if event["number"] > number]

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
