"""Is a number plausible in the unit that it is said to have, and inside the range that is declared for it?

Limits are wide: what breaks them is no robot at a table, but degrees for radians or millimetres for metres.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from toto_robot.data.finding import ERROR, Finding, first
from toto_robot.data.recording import Recording
from toto_robot.data.shards import Array

# unit: the largest size that is plausible, and what a larger number may be instead.
_LIMITS: dict[str, tuple[float, str]] = {
    "rad": (4 * math.pi, "degrees"),
    "m": (5.0, "millimetres"),
    "rad/s": (60.0, "degrees a second"),
    "m/s": (20.0, "millimetres a second"),
    "N": (5000.0, "another unit"),
    "N m": (1000.0, "another unit"),
    "1": (1.01, "not of a unit vector"),
    "of range, -1..1": (1.5, "not scaled to the range"),
}
_SUFFIXES = {"_rad_s": "rad/s", "_m_s": "m/s", "_rad": "rad", "_m": "m", "_n": "N", "_nm": "N m"}
_ROUNDING = 1e-5  # of float32 actions at the edge of their box


def check_units(recording: Recording, index: int, arrays: Mapping[str, Array]) -> Iterator[Finding]:
    """Yield the first step of every element that leaves its plausible or declared range."""
    for key, array in arrays.items():
        if array.dtype.kind != "f" or array.ndim != 2:
            continue
        names = element_names(recording, key, array.shape[1])
        limits = element_limits(recording, key, array.shape[1])
        for at, (name, limit) in enumerate(zip(names, limits, strict=True)):
            if limit is None:
                continue
            low, high, otherwise = limit
            with np.errstate(invalid="ignore"):
                outside = (array[:, at] < low) | (array[:, at] > high)
            for step in first(outside):
                count = int(outside.sum())
                what = (
                    f"expected {name} in {low:.6g}..{high:.6g}, got {array[step, at]:.6g} ({count} steps): {otherwise}"
                )
                yield Finding(ERROR, index, step, key, what)


def element_names(recording: Recording, key: str, count: int) -> list[str]:
    """Return the names of the elements of a key, their numbers where they have none."""
    names = recording.features[key].names
    return list(names) if names is not None and len(names) == count else [f"element {at}" for at in range(count)]


def element_units(recording: Recording, key: str, count: int) -> list[str | None]:
    """Return the unit of every element: what the task says, else what its name ends in."""
    said = recording.env.get("proprio_units") if key == "observation.state" else None
    if isinstance(said, Sequence) and len(said) == count:
        return [str(unit) for unit in said]
    return [_unit_of(name) for name in element_names(recording, key, count)]


def element_limits(recording: Recording, key: str, count: int) -> list[tuple[float, float, str] | None]:
    """Return (lowest, highest, what else it may be) of every element, None where nothing is known."""
    box = _action_box(recording.env, count) if key in ("action", "action.executed") else None
    if box is not None:
        low, high = box
        return [
            (float(a) - _ROUNDING, float(b) + _ROUNDING, "outside the declared action range")
            for a, b in zip(low, high, strict=True)
        ]
    return [_limit(unit) for unit in element_units(recording, key, count)]


def _action_box(env: Mapping[str, Any], count: int) -> tuple[Sequence[float], Sequence[float]] | None:
    low, high = env.get("action_low"), env.get("action_high")
    return (low, high) if low and high and len(low) == len(high) == count else None


def _unit_of(name: str) -> str | None:
    return next((unit for suffix, unit in _SUFFIXES.items() if name.lower().endswith(suffix)), None)


def _limit(unit: str | None) -> tuple[float, float, str] | None:
    """Return the limit of a unit; `0.1 rad/s` is a speed that was multiplied by 0.1."""
    if unit is None:
        return None
    factor, name = 1.0, unit
    if unit not in _LIMITS and (match := re.fullmatch(r"([0-9.]+) (.+)", unit)):
        factor, name = float(match.group(1)), match.group(2)
    if name not in _LIMITS:
        return None
    size, otherwise = _LIMITS[name]
    return -factor * size, factor * size, f"{otherwise}?"
