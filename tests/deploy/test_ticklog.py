"""Does the tick log keep whole records whatever the disk does?"""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from deploy.realtime import ticklog


class FullDisk:
    """A file that takes few bytes at a time, and none while the disk is full."""

    def __init__(self, path: Path) -> None:
        self._file, self.full = open(path, "wb", buffering=0), False  # noqa: SIM115

    def write(self, data: memoryview) -> int:
        if self.full:
            self.full = False
            self._file.write(data[:7])
            raise OSError(errno.ENOSPC, "No space left on device")
        return self._file.write(data[:1000]) or 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def test_a_full_disk_costs_records_and_tears_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ticklog, "_FLUSH_S", 1e6)
    log = ticklog.TickLog(tmp_path / "ticks", 100.0)
    log._file.close()
    disk = FullDisk(tmp_path / "ticks")
    log._file = disk  # type: ignore[assignment]

    def keep(first: int, last: int) -> None:
        for tick in range(first, last):
            log.record()["tick"] = tick
            log.keep()
        log._flush()

    keep(0, 20)
    disk.full = True
    keep(20, 30)
    keep(30, 45)
    log.close()
    assert log.lost == 10
    assert ticklog.read_ticks(tmp_path / "ticks")["tick"].tolist() == [*range(20), *range(30, 45)]
