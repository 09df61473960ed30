"""What must every test of the robot side leave as it found it, and which policy do they share?"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that lifts the hand, whatever it sees."""
    from cell import make_bundle

    return make_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(autouse=True)
def _scheduling_is_left_alone() -> Iterator[None]:
    """libfranka raises the thread that connects to SCHED_FIFO 99: what is left there starves all later tests."""
    before = os.sched_getscheduler(0)
    yield
    after = os.sched_getscheduler(0)
    if after != before:
        os.sched_setscheduler(0, before, os.sched_param(0))
    assert after == before, f"the test leaves its thread in scheduling policy {after}, not {before}"
