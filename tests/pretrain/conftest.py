"""Tests train models so small that threads only wait for each other, on a disk that they never unplug."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Compute on one thread (bits of a resumed run are also only promised for an equal number of threads)."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="session")
def unflushed() -> Iterator[None]:
    """Leave out fsync: a kill does not lose what the kernel has, and on a busy disk it would cost minutes."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(os, "fsync", lambda descriptor: None)
        yield
