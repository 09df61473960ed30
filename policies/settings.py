"""Which settings decide what a policy is, and how is it told that two policies differ in them?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

# Learner -> the sections of the settings that decide what it makes.
LEARNERS = {"bc": ("bc",), "dagger": ("bc", "dagger"), "ppo": ("ppo",)}


def idle_sections(learner: str) -> set[str]:
    """Return the sections that belong to other learners."""
    return {section for every in LEARNERS.values() for section in every} - {*LEARNERS[learner]}


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings by their dotted keys."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def told_change(before: Mapping[str, Any], now: Mapping[str, Any], keys: Iterable[str]) -> list[str]:
    """Return `key: before -> now` of the flat settings that differ."""
    return [f"{key}: {before.get(key)} -> {now.get(key)}" for key in keys if before.get(key) != now.get(key)]
