"""How are rows of a zarr v3 array read at the speed of the disk, compressed or not?

Where a shard is uncompressed and in one piece, its rows are a memmap and a window is one copy. Otherwise the index of
the shard, read once, says where each chunk lies, and only the chunks that are touched are decoded, whole ones straight
into the result. A call costs zarr about 250 us and every chunk of a shard more; here it costs a few us. What
`parse_layout` does not know (cut along other axes, big endian, other codecs) goes through zarr.

The bytes of an open shard are mapped; nothing else is kept but the last chunk that was decoded for a part of it, for
callers that go through an array row by row. Fork and threads are fine: results are fresh copies.
"""

from __future__ import annotations

import contextlib
import math
import mmap
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from toto_robot.data.codecs import DamagedChunk
from toto_robot.data.shards import MISSING, Array, Entries, Layout, parse_layout, read_entries
from toto_robot.run_folder import read_json

OPEN_SHARDS = 64  # files mapped per array; each costs a file descriptor


class ShardedArray:
    """The first `rows` rows of a zarr v3 array on disk; behaves like a read-only numpy array along its first axis.

    `rows` None takes the array's own length. Every result is a fresh, writable copy in memory. ValueError names the
    file where a shard is missing, cut short or damaged.
    """

    def __init__(self, folder: Path, metadata: dict[str, Any] | None = None, rows: int | None = None) -> None:
        metadata = metadata if metadata is not None else read_json(folder / "zarr.json")
        self.folder = folder
        self.layout = parse_layout(metadata)
        self.rows = int(metadata["shape"][0]) if rows is None else rows
        self.row_shape = tuple(int(size) for size in metadata["shape"][1:])
        self.dtype: np.dtype[Any] = np.dtype(metadata["data_type"])
        self._shards: OrderedDict[int, Array | EncodedShard] = OrderedDict()
        self._last: tuple[int, Array] | None = None  # number and rows of the chunk that was decoded last

    def grow(self, rows: int) -> None:
        """Show `rows` rows from now on."""
        self.rows = rows
        self._shards.clear()  # a shard mapped while it was being cut back would be short
        self._last = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Return (rows, *row shape)."""
        return (self.rows, *self.row_shape)

    @property
    def nbytes(self) -> int:
        """Return the bytes of all rows in memory."""
        return int(self.dtype.itemsize * math.prod(self.shape))

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, key: int | slice | Array) -> Array:
        if isinstance(key, slice):
            start, stop, step = key.indices(self.rows)
            return self.read(start, max(start, stop), step) if step > 0 else self.take(np.arange(start, stop, step))
        taken = self.take(np.atleast_1d(np.asarray(key)))
        return taken[0] if np.ndim(key) == 0 else taken

    def mapped(self) -> Array | None:
        """Return all rows as a read-only view of the file where they lie uncompressed in a single shard, else None."""
        if self.layout is None or not 0 < self.rows <= self.layout.shard_rows:
            return None
        rows = self._shard(0, self.layout)
        return rows[: self.rows] if isinstance(rows, np.ndarray) else None

    def read(self, start: int, stop: int, step: int = 1) -> Array:
        """Return rows start, start + step, ... below stop as (n, *row_shape); IndexError outside the array."""
        if not 0 <= start <= stop <= self.rows:
            raise IndexError(f"rows [{start}, {stop}) are not inside the {self.rows} rows of {self.folder}")
        if self.layout is not None and start < stop:
            shard, first = divmod(start, self.layout.shard_rows)
            last = stop - shard * self.layout.shard_rows
            if last <= self.layout.shard_rows and isinstance(rows := self._shard(shard, self.layout), np.ndarray):
                return rows[first:last:step].copy()
            if step == 1:
                return self._window(start, stop, self.layout)
        return self.take(np.arange(start, stop, step))

    def take(self, indices: npt.NDArray[np.integer[Any]] | Sequence[int]) -> Array:
        """Return the rows at `indices` (n,), in their order, as (n, *row_shape); IndexError outside the array."""
        wanted = np.asarray(indices, dtype=np.int64)
        if wanted.size and (wanted.min() < -self.rows or wanted.max() >= self.rows):
            raise IndexError(f"{wanted.min()} or {wanted.max()} is not one of the {self.rows} rows of {self.folder}")
        wanted = np.where(wanted < 0, wanted + self.rows, wanted)
        layout = self.layout
        if layout is None:
            return self._through_zarr(wanted)
        result = np.empty((len(wanted), *self.row_shape), self.dtype)
        for shard, at in _groups(wanted // layout.shard_rows):
            rows = self._shard(shard, layout)
            if isinstance(rows, np.ndarray):
                result[at] = rows[wanted[at] - shard * layout.shard_rows]
                continue
            for chunk, of in _groups(wanted[at] // layout.chunk_rows):
                result[at[of]] = self._chunk(chunk, layout)[wanted[at[of]] - chunk * layout.chunk_rows]
        return result

    def _window(self, start: int, stop: int, layout: Layout) -> Array:
        """Return rows [start, stop), piece by piece: what lies in one uncompressed shard, or in one chunk."""
        result = np.empty((stop - start, *self.row_shape), self.dtype)
        row = start
        while row < stop:
            row += self._fill(row, result[row - start :], layout)
        return result

    def _fill(self, row: int, out: Array, layout: Layout) -> int:
        """Fill the beginning of `out` with the rows from `row` to the end of its piece; return how many."""
        shard, first = divmod(row, layout.shard_rows)
        opened = self._shard(shard, layout)
        if isinstance(opened, np.ndarray):
            count = min(len(out), layout.shard_rows - first)
            out[:count] = opened[first : first + count]
            return count
        chunk, first = divmod(row, layout.chunk_rows)
        count = min(len(out), layout.chunk_rows - first)
        if count == layout.chunk_rows:
            opened.decode(chunk % layout.chunks_per_shard, out[:count])
        else:
            out[:count] = self._chunk(chunk, layout)[first : first + count]
        return count

    def _chunk(self, chunk: int, layout: Layout) -> Array:
        """Return the rows of a chunk (chunk_rows, *row_shape), to be read only; the last one is kept."""
        last = self._last
        if last is not None and last[0] == chunk:
            return last[1]
        rows = np.empty((layout.chunk_rows, *self.row_shape), self.dtype)
        shard, inner = divmod(chunk, layout.chunks_per_shard)
        opened = self._shard(shard, layout)
        assert isinstance(opened, EncodedShard)
        opened.decode(inner, rows)
        self._last = (chunk, rows)
        return rows

    def _through_zarr(self, wanted: Array) -> Array:
        import zarr

        array = zarr.open_array(self.folder, mode="r")
        if len(wanted) > 1 and (np.diff(wanted) == 1).all():  # slices are far cheaper than fancy indexing there
            return np.asarray(array[int(wanted[0]) : int(wanted[-1]) + 1])
        return np.asarray(array.oindex[wanted]) if len(wanted) else np.empty((0, *self.row_shape), self.dtype)

    def _shard(self, shard: int, layout: Layout) -> Array | EncodedShard:
        """Return the rows of a shard as a memmap, or the shard to decode where they do not lie in one piece; cached."""
        known = self._shards.get(shard)
        if known is not None:
            with contextlib.suppress(KeyError):  # another thread may just have let go of it
                self._shards.move_to_end(shard)
            return known
        needed = min(layout.shard_rows, self.rows - shard * layout.shard_rows)
        opened = _open_shard(self.folder / layout.shard_name(shard), layout, needed)
        self._shards[shard] = opened
        if len(self._shards) > OPEN_SHARDS:
            self._shards.popitem(last=False)
        return opened


class EncodedShard:
    """A shard file whose chunks are decoded one by one."""

    def __init__(self, path: Path, layout: Layout, data: npt.NDArray[np.uint8], entries: Entries) -> None:
        self.path, self.layout, self._data = path, layout, data
        self._entries: list[list[int]] = entries.tolist()

    def decode(self, chunk: int, out: Array) -> None:
        """Fill `out` (chunk_rows, *row_shape), contiguous, with chunk `chunk` of this shard; ValueError if damaged."""
        offset, nbytes = self._entries[chunk]
        if offset == MISSING:
            out.fill(self.layout.fill)  # zarr leaves out what holds nothing else
            return
        try:
            if offset + nbytes > len(self._data):
                raise DamagedChunk(f"it ends at byte {offset + nbytes} of {len(self._data)}")
            self.layout.codec.decode(self._data[offset : offset + nbytes], out.reshape(-1).view(np.uint8))
        except DamagedChunk as error:
            first = chunk * self.layout.chunk_rows
            raise ValueError(
                f"{self.path} is damaged: chunk {chunk} (its rows {first} to {first + self.layout.chunk_rows - 1}) "
                f"cannot be read, {error}; copy the store again, or make it again from its source"
            ) from error


def _open_shard(path: Path, layout: Layout, needed: int) -> Array | EncodedShard:
    """Map a shard of which the first `needed` rows count."""
    if not path.exists():
        if layout.gapless:
            raise ValueError(f"{path} is missing: the store is an incomplete copy; copy it again")
        return EncodedShard(path, layout, np.empty(0, np.uint8), np.full((layout.chunks_per_shard, 2), MISSING, "u8"))
    with open(path, "rb") as file:
        if not path.stat().st_size:
            raise ValueError(f"{path} is empty: damaged, copy the store again")
        data = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    entries = read_entries(data, layout, path)
    rows = _one_piece(data, layout, entries) if layout.codec.raw else None
    if rows is not None and len(rows) >= needed:
        return rows
    if rows is not None and (entries[: -(-needed // layout.chunk_rows), 0] != MISSING).all():
        raise ValueError(f"{path} holds {len(rows)} of {needed} rows: an incomplete copy; copy the store again")
    return EncodedShard(path, layout, data, entries)


def _one_piece(data: npt.NDArray[np.uint8], layout: Layout, entries: Entries) -> Array | None:
    """Return the rows of an uncompressed shard as a view, or None where its chunks are not one after the other."""
    missing = entries[:, 0] == MISSING
    present = int(np.argmax(missing)) if missing.any() else len(entries)
    chunk_nbytes = layout.chunk_rows * layout.row_nbytes
    if present == 0 or not missing[present:].all():
        return None
    offset = int(entries[0, 0])
    if (entries[:present, 0] != offset + chunk_nbytes * np.arange(present, dtype=np.uint64)).any():
        return None
    end = len(data) - (layout.index_nbytes if layout.index == "end" else 0)
    count = min(present * layout.chunk_rows, (end - offset) // layout.row_nbytes)
    return data[offset : offset + count * layout.row_nbytes].view(layout.dtype).reshape(count, *layout.row_shape)


def _groups(numbers: npt.NDArray[np.int64]) -> list[tuple[int, npt.NDArray[np.int64]]]:
    """Return every different number with the positions (n,) where it stands, in ascending order."""
    order = np.argsort(numbers, kind="stable")
    cuts = np.flatnonzero(np.diff(numbers[order])) + 1
    return [(int(numbers[at[0]]), at) for at in np.split(order, cuts) if len(at)]
