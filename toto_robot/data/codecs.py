"""How is one chunk of an array compressed, checked and restored?

A chunk of a zarr v3 array is the array's bytes, then at most one compressor (blosc or zstd), then at most one crc32c
over what came out. The codecs themselves are numcodecs', the library behind zarr: files are the same, byte for byte.

Blosc decodes straight into the place where the caller wants the rows. lz4 and zstd without the crc32c do not notice
every damaged byte, so what we write always has it; it costs a few per cent of decoding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import google_crc32c  # type: ignore[import-untyped]  # the checksum that zarr itself uses
import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]  # (n,) contiguous

CODECS = ("none", "blosc-lz4", "blosc-zstd", "zstd")  # what a store can be written with
_LEVELS = {"blosc-lz4": 5, "blosc-zstd": 3, "zstd": 3}
_BLOSC_INSIDE = ("blosclz", "lz4", "lz4hc", "zlib", "zstd")  # that numcodecs is built with
_BLOSC_SHUFFLES = {"noshuffle": 0, "shuffle": 1, "bitshuffle": 2}
_BLOSC_HEADER_NBYTES = 16
_CHECKSUM_NBYTES = 4


class DamagedChunk(ValueError):
    """The bytes of a chunk are not what was written; the message is the reason, the reader adds the place."""


@dataclass(frozen=True, kw_only=True)
class ChunkCodec:
    """What happens to the bytes of a chunk on their way to the file."""

    compressor: str | None  # "blosc" | "zstd" | None: as they are
    options: Mapping[str, Any]  # of the compressor, as in zarr.json
    checksum: bool  # a crc32c follows

    @property
    def raw(self) -> bool:
        """Return whether a chunk in the file is the array's own bytes, which a memmap can show."""
        return self.compressor is None and not self.checksum

    def metadata(self) -> list[dict[str, Any]]:
        """Return the entries of zarr.json behind the `bytes` codec."""
        compress = [{"name": self.compressor, "configuration": dict(self.options)}] if self.compressor else []
        return compress + ([{"name": "crc32c"}] if self.checksum else [])

    def encode(self, chunk: npt.NDArray[Any]) -> bytes:
        """Return the bytes to write for a whole, contiguous chunk."""
        encoded = self._compressed(chunk)
        if self.checksum:
            encoded += int(google_crc32c.value(encoded)).to_bytes(_CHECKSUM_NBYTES, "little")
        return encoded

    def decode(self, encoded: Bytes, out: Bytes) -> None:
        """Restore a chunk into `out`, which has its exact size; DamagedChunk where the bytes cannot be right."""
        if self.checksum:
            encoded = _without_checksum(encoded)
        if self.compressor == "blosc":
            _decode_blosc(encoded, out)
        elif self.compressor == "zstd":
            _decode_zstd(encoded, out)
        elif len(encoded) != len(out):
            raise DamagedChunk(f"it has {len(encoded)} bytes instead of {len(out)}")
        else:
            out[:] = encoded

    def _compressed(self, chunk: npt.NDArray[Any]) -> bytes:
        options = self.options
        if self.compressor == "blosc":
            shuffle, blocksize = _BLOSC_SHUFFLES[options["shuffle"]], options["blocksize"]
            # numcodecs takes the typesize from the items of what it is given
            items = np.ascontiguousarray(chunk).reshape(-1).view(f"u{options['typesize']}")
            return bytes(_blosc().compress(items, options["cname"].encode(), options["clevel"], shuffle, blocksize))
        if self.compressor == "zstd":
            from numcodecs import zstd

            return bytes(zstd.compress(np.ascontiguousarray(chunk), options["level"], options.get("checksum", False)))
        return np.ascontiguousarray(chunk).tobytes()


RAW = ChunkCodec(compressor=None, options={}, checksum=False)


def named_codec(name: str, itemsize: int) -> ChunkCodec:
    """Return the codec that a store is written with, for numbers of `itemsize` bytes; ValueError for another name."""
    require_codec(name)
    if name == "none":
        return RAW
    if name == "zstd":
        return ChunkCodec(compressor="zstd", options={"level": _LEVELS[name], "checksum": False}, checksum=True)
    options = {
        "typesize": itemsize,
        "cname": name.removeprefix("blosc-"),
        "clevel": _LEVELS[name],
        "shuffle": "noshuffle" if itemsize == 1 else "shuffle",  # pixels of rendered video repeat as whole bytes
        "blocksize": 0,
    }
    return ChunkCodec(compressor="blosc", options=options, checksum=True)


def require_codec(name: str) -> None:
    """Raise ValueError where `name` is not one of CODECS."""
    if name not in CODECS:
        raise ValueError(f"the codec of a store is one of {', '.join(CODECS)}; got {name!r}")


def parse_codec(entries: Sequence[Mapping[str, Any]]) -> ChunkCodec | None:
    """Return the codec from the entries of zarr.json behind `bytes`, or None where only zarr knows it."""
    checksum = bool(entries) and entries[-1]["name"] == "crc32c"
    compressors = entries[:-1] if checksum else entries
    if not compressors:
        return ChunkCodec(compressor=None, options={}, checksum=checksum)
    name, options = compressors[0]["name"], compressors[0].get("configuration", {})
    known = name == "zstd" or (name == "blosc" and options.get("cname") in _BLOSC_INSIDE)
    if len(compressors) > 1 or not known:
        return None
    return ChunkCodec(compressor=name, options=options, checksum=checksum)


def _without_checksum(encoded: Bytes) -> Bytes:
    body, stored = encoded[:-_CHECKSUM_NBYTES], encoded[-_CHECKSUM_NBYTES:]
    if int(google_crc32c.value(body)) != int.from_bytes(stored.tobytes(), "little"):
        raise DamagedChunk("its checksum does not fit")
    return body


def _decode_blosc(encoded: Bytes, out: Bytes) -> None:
    # The header's sizes are compared here because blosc trusts them: a wrong one would make it read past the end.
    # Bytes 4 to 7 are the size of the chunk, 12 to 15 its size compressed (c-blosc, README_CHUNK_FORMAT).
    header = encoded[:_BLOSC_HEADER_NBYTES].tobytes()
    sizes = int.from_bytes(header[4:8], "little"), int.from_bytes(header[12:16], "little")
    if len(header) < _BLOSC_HEADER_NBYTES or sizes != (len(out), len(encoded)):
        raise DamagedChunk(f"its header says {sizes[0]} bytes in {sizes[1]}, not {len(out)} in {len(encoded)}")
    try:
        _blosc().decompress(encoded, out)
    except RuntimeError as error:
        raise DamagedChunk(f"blosc says: {error}") from error


def _decode_zstd(encoded: Bytes, out: Bytes) -> None:
    from numcodecs import zstd

    try:
        # Not into `out`: numcodecs does not say how much of it was filled.
        decoded = zstd.decompress(encoded)
    except (RuntimeError, ValueError, MemoryError) as error:
        raise DamagedChunk(f"zstd says: {error}") from error
    if len(decoded) != len(out):
        raise DamagedChunk(f"it decodes to {len(decoded)} bytes instead of {len(out)}")
    out[:] = np.frombuffer(decoded, np.uint8)


def _blosc() -> Any:
    """Return numcodecs' blosc, imported when first needed and told to stay in the calling thread, as zarr does."""
    from numcodecs import blosc

    blosc.use_threads = False
    return blosc
