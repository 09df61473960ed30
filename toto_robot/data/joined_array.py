"""How are random windows read from many arrays that lie one after the other, as if they were one?

Where an array is a single uncompressed shard (shards.py), its rows are a view of the mapped file, kept for the next
call: a window is then one slice and one copy, about a microsecond. Everything else goes through `ShardedArray`.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from toto_robot.data.sharded_array import ShardedArray
from toto_robot.data.shards import Array

OPEN_PARTS = 256  # mapped at once; each costs a file descriptor, of which a process may have 1024 by default

Windows = Sequence[tuple[int, int]] | npt.NDArray[np.integer[Any]]  # (first row, stride) of each


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

    def take(self, indices: npt.NDArray[np.integer[Any]] | Sequence[int]) -> Array:
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

    def windows(self, windows: Windows, rows: int) -> Array:
        """Return the `rows` rows of each window (first row, stride), as (B, rows, *row_shape); IndexError outside."""
        pairs = np.asarray(windows, np.int64).reshape(-1, 2)
        stops = pairs[:, 0] + (rows - 1) * pairs[:, 1] + 1
        if len(pairs) and (rows < 1 or pairs[:, 0].min() < 0 or pairs[:, 1].min() < 1 or stops.max() > len(self)):
            raise IndexError(f"not all windows of {rows} rows from {pairs[:, 0].min()} to {stops.max()} are inside "
                             f"the {len(self)} rows, at strides of at least 1")  # fmt: skip
        result = np.empty((len(pairs), rows, *self.row_shape), self.dtype)
        parts = np.searchsorted(self.ends, pairs[:, 0], side="right")
        offsets = self.starts[parts]
        inside = stops <= self.ends[parts]
        firsts, lasts = pairs[:, 0] - offsets, stops - offsets
        each = zip(result, parts.tolist(), firsts.tolist(), lasts.tolist(), pairs[:, 1].tolist(), strict=True)
        for index, (out, part, first, last, stride) in enumerate(each):
            view = self._open(part)[1]
            if view is not None and inside[index]:
                out[:] = view[first:last:stride]
            else:
                out[:] = self.read(int(pairs[index, 0]), int(stops[index]), stride)
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
