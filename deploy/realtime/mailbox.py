"""How does one process see the newest record of another without ever waiting, and without ever seeing half of one?

A mailbox is a file in memory with a few slots. The writer fills the next slot, then says which one is newest; a reader
copies that slot and checks that its number was the same before and after. Neither locks: a killed process leaves
nothing held. A reader is too slow only if the writer fills all other slots during one copy; it then tries again.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

_SLOTS = 4
_ALIGN = 64  # bytes: a cache line
_MAGIC = 0x544F544F4D424F58  # "TOTOMBOX"
_TRIES = 16
_HEADER = np.dtype([("magic", "<u8"), ("size", "<u8"), ("newest", "<u8")])


def memory_folder(prefix: str = "toto_robot_") -> Path:
    """Make a folder for mailboxes, in memory where the system has /dev/shm."""
    parent = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    return Path(tempfile.mkdtemp(prefix=prefix, dir=parent))


class Mailbox:
    """One writer, any number of readers, records of one numpy dtype. `newest` never blocks and never tears.

    Create it with `create=True` before readers open it. Each record has a sequence number, 1 for the first one written.
    """

    def __init__(self, path: Path | str, dtype: Any, *, create: bool = False) -> None:
        self.path, self.dtype = Path(path), np.dtype(dtype)
        slot = np.dtype([("before", "<u8"), ("record", self.dtype), ("after", "<u8")])
        stride = -(-slot.itemsize // _ALIGN) * _ALIGN
        size = _ALIGN + _SLOTS * stride
        if create:
            partial = self.path.with_name(f".{self.path.name}.tmp")
            partial.write_bytes(bytes(size))
            header = np.memmap(partial, _HEADER, "r+", shape=(1,))
            header[0] = (_MAGIC, size, 0)
            header.flush()
            os.replace(partial, self.path)
        with open(self.path, "r+b") as file:
            found = os.fstat(file.fileno()).st_size
            if found != size:
                raise ValueError(f"{self.path}: expected a mailbox of {size} bytes for {self.dtype}, found {found}")
            self._memory = mmap.mmap(file.fileno(), size)
        self._header = np.frombuffer(self._memory, _HEADER, 1)
        if self._header["magic"][0] != _MAGIC:
            raise ValueError(f"{self.path} is not a mailbox")
        self._slots = [np.frombuffer(self._memory, slot, 1, _ALIGN + index * stride) for index in range(_SLOTS)]
        self._sequence = int(self._header["newest"][0])

    def put(self, record: Any) -> int:
        """Write a record (what numpy assigns to the dtype) as the newest; return its number. One writer only."""
        self._sequence += 1
        slot = self._slots[self._sequence % _SLOTS]
        slot["before"][0] = self._sequence
        slot["record"][0] = record
        slot["after"][0] = self._sequence
        self._header["newest"][0] = self._sequence
        return self._sequence

    def newest(self) -> tuple[int, np.ndarray]:
        """Return the number and a copy (a 0-d record) of the newest one; number 0, zeros, before the first."""
        for _ in range(_TRIES):
            sequence = int(self._header["newest"][0])
            if sequence == 0:
                return 0, np.zeros((), self.dtype)
            slot = self._slots[sequence % _SLOTS]
            # "after" first, "before" last: a writer that has begun this slot anew is seen by one of them.
            if int(slot["after"][0]) != sequence:
                continue
            record = slot["record"][0].copy()
            if int(slot["before"][0]) == sequence:
                return sequence, record
        raise RuntimeError(f"{self.path}: the writer overtook {_TRIES} reads of one record; it writes too fast to read")

    def close(self) -> None:
        """Let go of the memory; the file stays until its folder is removed."""
        self._slots, self._header = [], np.zeros(1, _HEADER)
        self._memory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
