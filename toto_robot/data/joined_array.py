"""How are random windows read from many arrays that lie one after the other, as if they were one?

Where an array is a single uncompressed shard (shards.py), its rows are a view of the mapped file, kept for the next
call: a window is then one slice and one copy, about a microsecond. Everything else goes through `ShardedArray`.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from toto_robot.data.mixture import Rows
from toto_robot.data.sampling import Integers
from toto_robot.data.sharded_array import ShardedArray
from toto_robot.data.shards import Array

OPEN_PARTS = 256  # mapped at once; each costs a file descriptor, of which a process may have 1024 by default


class JoinedArray:
    """Rows of several zarr arrays on disk, one array after the other; behaves like a read-only numpy array.

    Every result is a fresh, writable copy in memory. ValueError names the file where a part is missing or damaged.
    """

    def __init__(self, folders: Sequence[Path], rows: Sequence[int], row_shape: tuple[int, ...], dtype: str) -> None:
        """Join the arrays in `folders`, of so many `rows` each; nothing is opened before it is read."""
        assert len(folders) == len(rows)
        self.folders, self.row_shape, self.dtype = list(folders), row_shape, np.dtype(dtype)
        self.ends: npt.NDArray[np.int64] = np.cumsum(np.asarray(rows, np.int64))
        self.starts: npt.NDArray[np.int64] = self.ends - np.asarray(rows, np.int64)
        self._parts: OrderedDict[int, tuple[ShardedArray, Array | None]] = OrderedDict()

    @property
    def shape(self) -> tuple[int, ...]:
        """Return (rows, *row shape)."""
        return (len(self), *self.row_shape)

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __getitem__(self, key: int | slice | Array) -> Array:
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            return self.read(start, max(start, stop), step) if step > 0 else self.take(np.arange(start, stop, step))
        taken = self.take(np.atleast_1d(np.asarray(key)))
        return taken[0] if np.ndim(key) == 0 else taken

    def read(self, start: int, stop: int, step: int = 1) -> Array:
        """Return rows start, start + step, ... below stop as (n, *row_shape); IndexError outside the array."""
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"rows [{start}, {stop}) are not inside the {len(self)} rows")
        pieces, row = [], start
        while row < stop:
            part = self._part_of(row)
            offset, end = int(self.starts[part]), min(stop, int(self.ends[part]))
            pieces.append(self._open(part)[0].read(row - offset, end - offset, step))
            row += len(pieces[-1]) * step
        if len(pieces) == 1:
            return pieces[0]
        return np.concatenate(pieces) if pieces else np.empty((0, *self.row_shape), self.dtype)

    def take(self, indices: Integers | Sequence[int]) -> Array:
        """Return the rows at `indices` (n,), in their order, as (n, *row_shape); IndexError outside the array."""
        wanted = np.asarray(indices, np.int64)
        if wanted.size and (wanted.min() < -len(self) or wanted.max() >= len(self)):
            raise IndexError(f"{wanted.min()} or {wanted.max()} is not one of the {len(self)} rows")
        wanted = np.where(wanted < 0, wanted + len(self), wanted)
        parts = np.searchsorted(self.ends, wanted, side="right")
        result = np.empty((len(wanted), *self.row_shape), self.dtype)
        for part in np.unique(parts).tolist():
            at = np.flatnonzero(parts == part)
            result[at] = self._open(part)[0].take(wanted[at] - self.starts[part])
        return result

    def windows(self, windows: Sequence[Rows]) -> Array:
        """Return the rows of each window, all of one length T, as (B, T, *row_shape); IndexError outside the array."""
        length = len(windows[0]) if windows else 0
        result = np.empty((len(windows), length, *self.row_shape), self.dtype)
        starts = np.array([rows[0] for rows in windows], np.int64)
        parts = np.searchsorted(self.ends, starts, side="right")
        if len(windows) and not 0 <= starts.min() <= starts.max() < len(self):
            raise IndexError(f"{starts.min()} or {starts.max()} is not one of the {len(self)} rows")
        ends, offsets = self.ends[parts].tolist(), self.starts[parts].tolist()
        for out, rows, part, end, offset in zip(result, windows, parts.tolist(), ends, offsets, strict=True):
            if not isinstance(rows, range):
                out[:] = self.take(rows)
                continue
            view = self._open(part)[1]
            if view is not None and rows.step > 0 and rows[-1] < end:
                out[:] = view[rows.start - offset : rows[-1] - offset + 1 : rows.step]
            else:
                out[:] = self.read(rows.start, rows[-1] + 1, rows.step)
        return result

    def _part_of(self, row: int) -> int:
        return int(np.searchsorted(self.ends, row, side="right"))

    def _open(self, part: int) -> tuple[ShardedArray, Array | None]:
        """Return a part and, where it lies in one piece, its rows as a view; the ones used last stay open."""
        opened = self._parts.get(part)
        if opened is not None:
            if len(self.folders) > OPEN_PARTS:
                with contextlib.suppress(KeyError):  # another thread may just have let go of it
                    self._parts.move_to_end(part)
            return opened
        array = ShardedArray(self.folders[part])
        expected = (int(self.ends[part] - self.starts[part]), *self.row_shape)
        if array.shape != expected or array.dtype != self.dtype:
            raise ValueError(
                f"{self.folders[part]} holds {array.dtype} {array.shape}, expected {self.dtype} {expected}: "
                "the store is damaged, copy it again"
            )
        opened = self._parts[part] = (array, array.mapped())
        if len(self._parts) > OPEN_PARTS:
            self._parts.popitem(last=False)
        return opened
