"""Tests write thousands of times to a disk that they never unplug."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def unflushed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out fsync: a kill does not lose what the kernel has, and on a busy disk it would cost minutes."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)
