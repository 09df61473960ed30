"""What does a check say about a data set: one line a finding."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from toto_robot.data.shards import Array

ERROR, WARNING = "error", "warning"


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, and where."""

    severity: str  # ERROR or WARNING
    episode: int | None
    step: int | None
    key: str
    what: str  # expected ..., got ...

    def __str__(self) -> str:
        place = "" if self.episode is None else f"episode {self.episode} "
        place += "" if self.step is None else f"step {self.step} "
        return f"{self.severity:<7} {place}{self.key}: {' '.join(self.what.split())}"


def first(wrong: Array) -> list[int]:
    """Return the first index where `wrong` (n,) is true, in a list; empty where it is nowhere."""
    return [int(np.argmax(wrong))] if wrong.any() else []
