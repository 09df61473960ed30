"""How do rows get into shard files: in place while an array grows, or compressed once it is finished?

The two layouts are described in shards.py. Rows that were written in place past the committed ones are leftovers of a
killed writer; `ShardWriter.truncate` zeroes them, so equal rows give equal files.
"""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from toto_robot.data.sharded_array import ShardedArray
from toto_robot.data.shards import MISSING, Array, Layout, array_metadata, index_bytes, parse_layout

_COPIED_BYTES = 16 * 2**20  # rows of an uncompressed copy in memory at once


class ShardWriter:
    """Writes rows of one array into their place, shard by shard."""

    def __init__(self, folder: Path, layout: Layout) -> None:
        assert layout.in_place
        self.folder, self.layout = folder, layout
        self._file: io.FileIO | None = None
        self._shard = -1

    def write(self, row: int, rows: Array) -> None:
        """Write `rows` (n, *row_shape) of the array's dtype at position `row`; OSError where the disk refuses."""
        layout = self.layout
        assert rows.dtype == layout.dtype and rows.shape[1:] == layout.row_shape, (rows.dtype, rows.shape)
        data = np.ascontiguousarray(rows).data.cast("B") if len(rows) else memoryview(b"")
        while data:
            shard, first = divmod(row, layout.shard_rows)
            count = min(layout.shard_rows - first, len(data) // layout.row_nbytes)
            nbytes = count * layout.row_nbytes
            write_all(self._open(shard), data[:nbytes], layout.header_nbytes + first * layout.row_nbytes)
            data, row = data[nbytes:], row + count

    def flush(self) -> None:
        """Bring what was written to the disk (only the last shard is open: the others were flushed when full)."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Flush and close the open shard."""
        file, self._file, self._shard = self._file, None, -1
        if file is not None:
            with file:
                os.fsync(file.fileno())

    def truncate(self, rows: int) -> None:
        """Forget everything from row `rows` on: the files are then what they were when that many had been written."""
        layout = self.layout
        self.close()
        whole, rest = divmod(rows, layout.shard_rows)
        for path in self.folder.glob("c.*"):
            if int(path.name.split(".")[1]) >= whole + (rest > 0):
                path.unlink()
        if rest:
            path = self.folder / layout.shard_name(whole)
            if not path.exists():
                raise ValueError(f"{path} is missing: the store is an incomplete copy; copy it again")
            os.truncate(path, layout.header_nbytes + rest * layout.row_nbytes)
            os.truncate(path, layout.shard_nbytes)  # grows again as a hole of zeros

    def _open(self, shard: int) -> io.FileIO:
        if self._file is not None and shard == self._shard:
            return self._file
        self.close()
        path = self.folder / self.layout.shard_name(shard)
        if not path.exists():
            self._create(path)
        self._file, self._shard = open(path, "r+b", buffering=0), shard  # noqa: SIM115 (kept for the next rows)
        return self._file

    def _create(self, path: Path) -> None:
        try:
            with open(path, "xb", buffering=0) as file:
                os.ftruncate(file.fileno(), self.layout.shard_nbytes)
                write_all(file, memoryview(self.layout.full_index()), 0)
        except OSError:
            path.unlink(missing_ok=True)  # else the next attempt would take it for a whole shard
            raise


def write_all(file: io.FileIO, data: memoryview, offset: int) -> None:
    """Write all of `data` at `offset` of an open file; OSError where the disk refuses."""
    while data:  # a nearly full disk takes a part first and refuses the rest on the next call
        written = os.pwrite(file.fileno(), data, offset)
        data, offset = data[written:], offset + written


def write_arrays(
    sources: Mapping[str, ShardedArray],
    path: Path,
    codec: str,
    chunk_rows: int | None = None,
    progress: Callable[[int], object] = lambda nbytes: None,
) -> dict[str, dict[str, Any]]:
    """Write the arrays of a store under `path` with another codec; return their new metadata by name, of length 0.

    `path` may be the folder of the store itself, if that is uncompressed and `codec` is not "none". What was written
    is deleted again where it cannot be completed (OSError: the disk is full).
    """
    metadata = {
        name: array_metadata(array.dtype.name, array.row_shape, codec=codec, chunk_rows=chunk_rows)
        for name, array in sources.items()
    }
    try:
        for name, array in sources.items():
            layout = parse_layout(metadata[name])
            assert layout is not None
            write_array(array, path / name, layout, progress)
    except BaseException:
        if codec != "none":
            for name in sources:
                drop_compressed(path / name)
        raise
    return metadata


def drop_compressed(folder: Path) -> None:
    """Delete the compressed shards of an array."""
    shutil.rmtree(folder / "c", ignore_errors=True)


def drop_replaced(arrays: Mapping[str, ShardedArray]) -> None:
    """Delete the shards in place of arrays that are compressed now."""
    for array in arrays.values():
        layout = array.layout
        if layout is not None and not layout.codec.raw and layout.separator == "/":
            for leftover in array.folder.glob("c.*"):
                leftover.unlink(missing_ok=True)


def write_array(source: ShardedArray, folder: Path, layout: Layout, progress: Callable[[int], object]) -> None:
    """Write all rows of `source` to `folder` in one of our two layouts; `progress` is told the bytes as they are done.

    What was written is on the disk when this returns.
    """
    if layout.in_place:
        _write_plain(source, folder, layout, progress)
        return
    for shard, first in enumerate(range(0, len(source), layout.shard_rows)):
        path = folder / layout.shard_name(shard)
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_compressed_shard(source, path, layout, first, progress)


def _write_plain(source: ShardedArray, folder: Path, layout: Layout, progress: Callable[[int], object]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    writer, block = ShardWriter(folder, layout), max(1, _COPIED_BYTES // layout.row_nbytes)
    for start in range(0, len(source), block):
        rows = source.read(start, min(start + block, len(source)))
        writer.write(start, rows)
        progress(rows.nbytes)
    writer.close()


def _write_compressed_shard(
    source: ShardedArray, path: Path, layout: Layout, first: int, progress: Callable[[int], object]
) -> None:
    """Write one shard, chunk after chunk; its index comes last, so a shard without one was never finished."""
    entries = np.full((layout.chunks_per_shard, 2), MISSING, np.uint64)
    stop, offset = min(first + layout.shard_rows, len(source)), layout.header_nbytes
    with open(path, "wb", buffering=0) as file:
        for number, row in enumerate(range(first, stop, layout.chunk_rows)):
            rows = source.read(row, min(row + layout.chunk_rows, stop))
            encoded = layout.codec.encode(_padded(rows, layout))
            write_all(file, memoryview(encoded), offset)
            entries[number] = offset, len(encoded)
            offset += len(encoded)
            progress(rows.nbytes)
        write_all(file, memoryview(index_bytes(entries)), 0)
        os.fsync(file.fileno())


def _padded(rows: Array, layout: Layout) -> Array:
    """Return a whole chunk: zarr stores the last one of an array with the fill value behind its rows."""
    if len(rows) == layout.chunk_rows:
        return rows
    chunk = np.full((layout.chunk_rows, *layout.row_shape), layout.fill, layout.dtype)
    chunk[: len(rows)] = rows
    return chunk
