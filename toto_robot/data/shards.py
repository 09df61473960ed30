"""How does an array that grows along its first axis lie in zarr v3 shards, written in place and read by memmap?

Format (plain zarr v3, nothing of ours): codec `sharding_indexed`, no compressor, index at the start of the file.

    shard file `c.<s>.0.0`:   index: (offset, nbytes) uint64 of every chunk, then crc32c  |  chunk 0  |  chunk 1  |  ...

Without a compressor every offset is known before there is data, so a shard is created whole (a sparse file, all zeros)
and rows are then written straight to their place: an append costs the bytes it adds, nothing is ever rewritten, and the
file is a valid shard at every moment. How many rows count is decided elsewhere (`flat_store.py` commits that number);
rows past it are leftovers of a killed writer and `ShardWriter.truncate` zeroes them, so equal rows give equal files.

The reader takes any uncompressed zarr v3 array (also unsharded, or with the index at the end, as zarr writes it).
It reads the index once per shard and then slices a memmap, about 100 times faster than zarr for short windows, where a
call costs zarr 250 us and the bytes almost nothing. Anything else (compressed, gaps inside a shard) goes through zarr.
"""

from __future__ import annotations

import io
import math
import mmap
import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c  # type: ignore[import-untyped]  # the checksum that zarr itself uses
import numpy as np
import numpy.typing as npt

from toto_robot.run_folder import read_json

Array = npt.NDArray[Any]

DTYPES = ("bool", "uint8", "uint16", "int32", "int64", "float16", "float32", "float64")
CHUNK_BYTES = 256 * 1024  # what a plain zarr reader has to read at least: about 20 frames of 64 px
CHUNKS_PER_SHARD = 256  # a shard is then 64 MiB at most
MAX_CHUNK_ROWS = 256  # so that a shard of a few numbers a row stays under 2 MiB
OPEN_SHARDS = 64  # memmaps held open per array; each costs a file descriptor
_MISSING = 2**64 - 1  # offset and nbytes of a chunk that is not in the shard
_LITTLE_ENDIAN = {"name": "bytes", "configuration": {"endian": "little"}}
_INDEX_CODECS = [_LITTLE_ENDIAN, {"name": "crc32c"}]


def array_metadata(dtype: str, row_shape: Sequence[int]) -> dict[str, Any]:
    """Return the `zarr.json` of an empty array with rows of `row_shape`; ValueError for a dtype not in DTYPES."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}; got {dtype!r}")
    if any(size < 1 for size in row_shape):
        raise ValueError(f"every axis of a row must have at least one element; got shape {tuple(row_shape)}")
    row_nbytes = np.dtype(dtype).itemsize * math.prod(row_shape)
    chunk_rows = min(MAX_CHUNK_ROWS, 2 ** int(math.log2(max(1, CHUNK_BYTES // row_nbytes))))
    sharding = {
        "chunk_shape": [chunk_rows, *row_shape],
        "codecs": [_LITTLE_ENDIAN if np.dtype(dtype).itemsize > 1 else {"name": "bytes"}],
        "index_codecs": _INDEX_CODECS,
        "index_location": "start",
    }
    return {
        "shape": [0, *row_shape],
        "data_type": dtype,
        "chunk_grid": {
            "name": "regular",
            "configuration": {"chunk_shape": [chunk_rows * CHUNKS_PER_SHARD, *row_shape]},
        },
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": False if dtype == "bool" else 0.0 if dtype.startswith("float") else 0,
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        "attributes": {},
        "zarr_format": 3,
        "node_type": "array",
        "storage_transformers": [],
    }


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where the rows of an uncompressed array lie in its files."""

    dtype: np.dtype[Any]
    row_shape: tuple[int, ...]
    chunk_rows: int
    shard_rows: int
    index: str | None  # "start" | "end" | None: no shards, one file is one chunk
    separator: str  # of the chunk key: "." or "/"

    @property
    def row_nbytes(self) -> int:
        """Return the bytes of one row."""
        return int(self.dtype.itemsize * math.prod(self.row_shape))

    @property
    def index_nbytes(self) -> int:
        """Return the bytes of a shard's index with its checksum; 0 without shards."""
        return 0 if self.index is None else 16 * (self.shard_rows // self.chunk_rows) + 4

    @property
    def header_nbytes(self) -> int:
        """Return the offset of the first row in a shard that was written in place."""
        return self.index_nbytes if self.index == "start" else 0

    @property
    def shard_nbytes(self) -> int:
        """Return the size of a whole shard file."""
        return self.index_nbytes + self.shard_rows * self.row_nbytes

    def shard_name(self, shard: int) -> str:
        """Return the file of a shard, relative to the array's folder."""
        return self.separator.join(["c", str(shard), *["0"] * len(self.row_shape)])

    def full_index(self) -> bytes:
        """Return the index of a shard that holds all its chunks in order: what our writer puts at the start."""
        chunk_nbytes = self.chunk_rows * self.row_nbytes
        entries = np.empty((self.shard_rows // self.chunk_rows, 2), "<u8")
        entries[:, 0] = self.header_nbytes + chunk_nbytes * np.arange(len(entries), dtype="<u8")
        entries[:, 1] = chunk_nbytes
        return entries.tobytes() + int(google_crc32c.value(entries.tobytes())).to_bytes(4, "little")


def parse_layout(metadata: dict[str, Any]) -> Layout | None:
    """Return the layout of an array from its `zarr.json`, or None where only zarr can read it (compressed, ...)."""
    codecs, shape = metadata["codecs"], metadata["shape"]
    grid, keys = metadata["chunk_grid"], metadata["chunk_key_encoding"]
    if metadata["data_type"] not in DTYPES or grid["name"] != "regular" or keys["name"] != "default" or not shape:
        return None
    outer = inner = grid["configuration"]["chunk_shape"]
    index: str | None = None
    if len(codecs) == 1 and codecs[0]["name"] == "sharding_indexed":
        sharding = codecs[0]["configuration"]
        if sharding["index_codecs"] != _INDEX_CODECS:
            return None
        inner, codecs, index = sharding["chunk_shape"], sharding["codecs"], sharding.get("index_location", "end")
    dtype = np.dtype(metadata["data_type"])
    raw = len(codecs) == 1 and codecs[0]["name"] == "bytes"
    if not raw or (dtype.itemsize > 1 and codecs[0].get("configuration", {}).get("endian", "little") != "little"):
        return None
    if outer[1:] != shape[1:] or inner[1:] != shape[1:]:
        return None  # cut along more than the first axis
    separator = keys.get("configuration", {}).get("separator", "/")
    return Layout(
        dtype=dtype,
        row_shape=tuple(shape[1:]),
        chunk_rows=inner[0],
        shard_rows=outer[0],
        index=index,
        separator=separator,
    )


class ShardedArray:
    """The first `rows` rows of a zarr v3 array on disk; behaves like a read-only numpy array along its first axis.

    `rows` None takes the array's own length. Every result is a fresh, writable copy in memory.
    """

    def __init__(self, folder: Path, metadata: dict[str, Any] | None = None, rows: int | None = None) -> None:
        metadata = metadata if metadata is not None else read_json(folder / "zarr.json")
        self.folder = folder
        self.layout = parse_layout(metadata)
        self.rows = int(metadata["shape"][0]) if rows is None else rows
        self.row_shape = tuple(int(size) for size in metadata["shape"][1:])
        self.dtype: np.dtype[Any] = np.dtype(metadata["data_type"])
        self._views: OrderedDict[int, Array | None] = OrderedDict()

    def grow(self, rows: int) -> None:
        """Show `rows` rows from now on."""
        self.rows = rows
        self._views.clear()  # a shard mapped while it was being cut back would be short

    @property
    def shape(self) -> tuple[int, ...]:
        """Return (rows, *row shape)."""
        return (self.rows, *self.row_shape)

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, key: int | slice | Array) -> Array:
        if isinstance(key, slice):
            start, stop, step = key.indices(self.rows)
            return self.read(start, max(start, stop), step) if step > 0 else self.take(np.arange(start, stop, step))
        taken = self.take(np.atleast_1d(np.asarray(key)))
        return taken[0] if np.ndim(key) == 0 else taken

    def read(self, start: int, stop: int, step: int = 1) -> Array:
        """Return rows start, start + step, ... below stop as (n, *row_shape); IndexError outside the array."""
        if not 0 <= start <= stop <= self.rows:
            raise IndexError(f"rows [{start}, {stop}) are not inside the {self.rows} rows of {self.folder}")
        if self.layout is not None and start < stop:
            shard, first = divmod(start, self.layout.shard_rows)
            last = stop - shard * self.layout.shard_rows
            if last <= self.layout.shard_rows and (view := self._view(shard)) is not None:
                return view[first:last:step].copy()
        return self.take(np.arange(start, stop, step))

    def take(self, indices: npt.NDArray[np.integer[Any]] | Sequence[int]) -> Array:
        """Return the rows at `indices` (n,), in their order, as (n, *row_shape); IndexError outside the array."""
        wanted = np.asarray(indices, dtype=np.int64)
        if wanted.size and (wanted.min() < -self.rows or wanted.max() >= self.rows):
            raise IndexError(f"{wanted.min()} or {wanted.max()} is not one of the {self.rows} rows of {self.folder}")
        wanted = np.where(wanted < 0, wanted + self.rows, wanted)
        result = np.empty((len(wanted), *self.row_shape), self.dtype)
        if self.layout is None:
            return self._through_zarr(wanted)
        shards, rows = np.divmod(wanted, self.layout.shard_rows)
        for shard in np.unique(shards):
            view = self._view(int(shard))
            if view is None:
                return self._through_zarr(wanted)
            here = shards == shard
            result[here] = view[rows[here]]
        return result

    def _through_zarr(self, wanted: Array) -> Array:
        import zarr

        array = zarr.open_array(self.folder, mode="r")
        if len(wanted) > 1 and (np.diff(wanted) == 1).all():  # slices are far cheaper than fancy indexing there
            return np.asarray(array[int(wanted[0]) : int(wanted[-1]) + 1])
        return np.asarray(array.oindex[wanted]) if len(wanted) else np.empty((0, *self.row_shape), self.dtype)

    def _view(self, shard: int) -> Array | None:
        """Return the rows of a shard as a memmap, or None where they do not lie in one piece; cached."""
        if shard in self._views:
            self._views.move_to_end(shard)
            return self._views[shard]
        self._views[shard] = self._map(shard)
        if len(self._views) > OPEN_SHARDS:
            self._views.popitem(last=False)
        return self._views[shard]

    def _map(self, shard: int) -> Array | None:
        layout = self.layout
        assert layout is not None
        path = self.folder / layout.shard_name(shard)
        if not path.exists():
            if layout.index == "start":  # our writer leaves no gaps; zarr would read them as zeros without a word
                raise ValueError(f"{path} is missing: the store is an incomplete copy; copy it again")
            return None  # zarr leaves out shards that hold only zeros
        with open(path, "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        span = _one_piece(mapped, layout, path)
        if span is None:
            return None
        offset, count = span
        needed = min(layout.shard_rows, self.rows - shard * layout.shard_rows)
        if count < needed:
            if layout.index == "start":
                raise ValueError(f"{path} holds {count} of {needed} rows: an incomplete copy; copy the store again")
            return None
        flat = np.frombuffer(mapped, layout.dtype, count * math.prod(layout.row_shape), offset)
        return flat.reshape(count, *layout.row_shape)


def _one_piece(mapped: mmap.mmap, layout: Layout, path: Path) -> tuple[int, int] | None:
    """Return (offset, rows) of the chunks of a shard, or None where they are not one after the other."""
    if layout.index is None:
        return 0, min(layout.shard_rows, len(mapped) // layout.row_nbytes)
    at = 0 if layout.index == "start" else len(mapped) - layout.index_nbytes
    if len(mapped) < layout.index_nbytes:
        raise ValueError(f"{path} is too short to be a shard ({len(mapped)} bytes): damaged, copy the store again")
    index = mapped[at : at + layout.index_nbytes]
    if int(google_crc32c.value(index[:-4])) != int.from_bytes(index[-4:], "little"):
        raise ValueError(f"the shard index of {path} fails its checksum: the store is damaged; copy it again")
    entries = np.frombuffer(index[:-4], "<u8").reshape(-1, 2)
    present = int(np.argmax(entries[:, 0] == _MISSING)) if (entries[:, 0] == _MISSING).any() else len(entries)
    chunk_nbytes = layout.chunk_rows * layout.row_nbytes
    if present == 0 or (entries[present:, 0] != _MISSING).any():
        return None
    offset = int(entries[0, 0])
    if (entries[:present, 0] != offset + chunk_nbytes * np.arange(present, dtype="<u8")).any():
        return None
    end = len(mapped) if layout.index == "start" else at
    return offset, min(present * layout.chunk_rows, (end - offset) // layout.row_nbytes)


class ShardWriter:
    """Writes rows of one array into their place, shard by shard."""

    def __init__(self, folder: Path, layout: Layout) -> None:
        assert layout.index == "start"
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
