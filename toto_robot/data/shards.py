"""How does an array that is flat in time lie in zarr v3 shards, and which arrays can be read without zarr?

Format (plain zarr v3, nothing of ours): codec `sharding_indexed`, index at the start of the file.

    shard file:   index: (offset, nbytes) uint64 of every chunk, then crc32c  |  chunk 0  |  chunk 1  |  ...

Two layouts are written. A store that **grows** is uncompressed, in files `c.<s>.0.0`: every offset is known before
there is data, so a shard is created whole (a sparse file, all zeros) and rows are then written straight to their place.
An append costs the bytes it adds, nothing is ever rewritten, and the file is a valid shard at every moment. How many
rows count is decided elsewhere (`flat_store.py` commits that number). A **finished** store may be compressed, in files
`c/<s>/0/0`: offsets follow from the data, so shards are written once, whole, and never again. The names differ so that
both layouts of an array can lie side by side while one replaces the other.

`parse_layout` takes these and what zarr itself writes: sharded or not, index at either end, blosc, zstd, crc32c. For
anything else it says None, and the array is read through zarr.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c  # type: ignore[import-untyped]  # the checksum that zarr itself uses
import numpy as np
import numpy.typing as npt

from toto_robot.data.codecs import ChunkCodec, named_codec, parse_codec

Array = npt.NDArray[Any]
Entries = npt.NDArray[np.uint64]  # (chunks, 2): offset and nbytes of every chunk in its shard

DTYPES = ("bool", "uint8", "uint16", "int32", "int64", "float16", "float32", "float64")
CHUNK_BYTES = 256 * 1024  # what a plain zarr reader has to read at least: about 20 frames of 64 px
CHUNKS_PER_SHARD = 256  # a shard is then 64 MiB at most
MAX_CHUNK_ROWS = 256  # so that a shard of a few numbers a row stays under 2 MiB
IMAGE_ROW_BYTES = 4096  # rows from here on are images: read in short windows, so compressed in short chunks
COMPRESSED_IMAGE_ROWS = 4  # a window of 16 decodes 19 frames on average; in chunks of 8 it would be 23
MISSING = 2**64 - 1  # offset and nbytes of a chunk that is not in the shard
_LITTLE_ENDIAN = {"name": "bytes", "configuration": {"endian": "little"}}
_INDEX_CODECS = [_LITTLE_ENDIAN, {"name": "crc32c"}]


def array_metadata(
    dtype: str,
    row_shape: Sequence[int],
    *,
    codec: str = "none",
    chunk_rows: int | None = None,
    total_rows: int | None = None,
) -> dict[str, Any]:
    """Return the `zarr.json` of an empty array with rows of `row_shape`.

    `codec` is one of codecs.CODECS, `chunk_rows` the images in a compressed chunk (None: COMPRESSED_IMAGE_ROWS); other
    rows are cut as without a codec. An array that will have `total_rows` gets one shard that just holds them.
    ValueError for a dtype not in DTYPES, another codec, an empty row or chunk.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}; got {dtype!r}")
    if any(size < 1 for size in row_shape):
        raise ValueError(f"every axis of a row must have at least one element; got shape {tuple(row_shape)}")
    itemsize = np.dtype(dtype).itemsize
    chosen = named_codec(codec, itemsize)
    chunk_rows = _chunk_rows(itemsize * math.prod(row_shape), chosen, chunk_rows)
    shard_chunks = CHUNKS_PER_SHARD if total_rows is None else max(1, -(-total_rows // chunk_rows))
    sharding = {
        "chunk_shape": [chunk_rows, *row_shape],
        "codecs": [_LITTLE_ENDIAN if itemsize > 1 else {"name": "bytes"}, *chosen.metadata()],
        "index_codecs": _INDEX_CODECS,
        "index_location": "start",
    }
    return {
        "shape": [0, *row_shape],
        "data_type": dtype,
        "chunk_grid": {
            "name": "regular",
            "configuration": {"chunk_shape": [chunk_rows * shard_chunks, *row_shape]},
        },
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "." if chosen.raw else "/"}},
        "fill_value": False if dtype == "bool" else 0.0 if dtype.startswith("float") else 0,
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        "attributes": {},
        "zarr_format": 3,
        "node_type": "array",
        "storage_transformers": [],
    }


def _chunk_rows(row_nbytes: int, codec: ChunkCodec, wanted: int | None) -> int:
    if wanted is not None and wanted < 1:
        raise ValueError(f"a chunk needs at least one row; got chunk_rows={wanted}")
    if not codec.raw and row_nbytes >= IMAGE_ROW_BYTES:
        return wanted or COMPRESSED_IMAGE_ROWS
    return min(MAX_CHUNK_ROWS, 2 ** int(math.log2(max(1, CHUNK_BYTES // row_nbytes))))


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where the rows of an array, cut along its first axis only, lie in its files."""

    dtype: np.dtype[Any]
    row_shape: tuple[int, ...]
    chunk_rows: int
    shard_rows: int
    index: str | None  # "start" | "end" | None: no shards, one file is one chunk
    separator: str  # of the chunk key: "." or "/"
    codec: ChunkCodec
    fill: bool | int | float  # what a chunk that was left out holds

    @property
    def row_nbytes(self) -> int:
        """Return the bytes of one row."""
        return int(self.dtype.itemsize * math.prod(self.row_shape))

    @property
    def chunks_per_shard(self) -> int:
        """Return the chunks of a shard; 1 without shards."""
        return self.shard_rows // self.chunk_rows

    @property
    def index_nbytes(self) -> int:
        """Return the bytes of a shard's index with its checksum; 0 without shards."""
        return 0 if self.index is None else 16 * self.chunks_per_shard + 4

    @property
    def header_nbytes(self) -> int:
        """Return the offset of the first chunk in a shard that was written here."""
        return self.index_nbytes if self.index == "start" else 0

    @property
    def shard_nbytes(self) -> int:
        """Return the size of a whole uncompressed shard file."""
        return self.index_nbytes + self.shard_rows * self.row_nbytes

    @property
    def in_place(self) -> bool:
        """Return whether rows can be written straight to their place: the layout of a store that grows."""
        return self.codec.raw and self.index == "start" and self.separator == "."

    @property
    def gapless(self) -> bool:
        """Return whether this is one of the two layouts that we write, with a file for every shard.

        zarr writes no file for a shard that holds only the fill value; here a missing one is an incomplete copy.
        """
        return self.in_place or (not self.codec.raw and self.codec.checksum and self.index == "start")

    def shard_name(self, shard: int) -> str:
        """Return the file of a shard, relative to the array's folder."""
        return self.separator.join(["c", str(shard), *["0"] * len(self.row_shape)])

    def full_index(self) -> bytes:
        """Return the index of an uncompressed shard that holds all its chunks in order."""
        chunk_nbytes = self.chunk_rows * self.row_nbytes
        entries = np.empty((self.chunks_per_shard, 2), "<u8")
        entries[:, 0] = self.header_nbytes + chunk_nbytes * np.arange(len(entries), dtype="<u8")
        entries[:, 1] = chunk_nbytes
        return index_bytes(entries)


def parse_layout(metadata: dict[str, Any]) -> Layout | None:
    """Return the layout of an array from its `zarr.json`, or None where only zarr can read it."""
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
    codec, fill = parse_codec(codecs[1:]), _parse_fill(metadata["fill_value"])
    if codec is None or fill is None or not _is_plain_bytes(codecs[0], dtype) or metadata.get("storage_transformers"):
        return None
    if outer[1:] != shape[1:] or inner[1:] != shape[1:]:
        return None  # cut along more than the first axis
    return Layout(
        dtype=dtype,
        row_shape=tuple(shape[1:]),
        chunk_rows=inner[0],
        shard_rows=outer[0],
        index=index,
        separator=keys.get("configuration", {}).get("separator", "/"),
        codec=codec,
        fill=fill,
    )


def _is_plain_bytes(entry: dict[str, Any], dtype: np.dtype[Any]) -> bool:
    little = dtype.itemsize == 1 or entry.get("configuration", {}).get("endian", "little") == "little"
    return bool(entry["name"] == "bytes" and little)


def _parse_fill(value: Any) -> bool | int | float | None:
    """Return the fill value as a number; None for one in hexadecimal, which says the bits of a NaN."""
    if isinstance(value, (bool, int, float)):
        return value
    named = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
    return named.get(value) if isinstance(value, str) else None


def index_bytes(entries: Entries) -> bytes:
    """Return the index of a shard as it lies in the file."""
    body = entries.astype("<u8").tobytes()
    return body + int(google_crc32c.value(body)).to_bytes(4, "little")


def read_entries(data: npt.NDArray[np.uint8], layout: Layout, path: Path) -> Entries:
    """Return where the chunks of a shard file with the bytes `data` lie; ValueError where its index is damaged."""
    if layout.index is None:
        return np.array([[0, len(data)]], np.uint64)
    if len(data) < layout.index_nbytes:
        raise ValueError(f"{path} is too short to be a shard ({len(data)} bytes): damaged, copy the store again")
    at = 0 if layout.index == "start" else len(data) - layout.index_nbytes
    index = data[at : at + layout.index_nbytes].tobytes()
    if int(google_crc32c.value(index[:-4])) != int.from_bytes(index[-4:], "little"):
        raise ValueError(f"the shard index of {path} fails its checksum: the store is damaged; copy it again")
    return np.frombuffer(index[:-4], "<u8").reshape(-1, 2).astype(np.uint64)
