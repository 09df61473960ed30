"""Where do the tokens of all clips lie, and how is a window of them read fast?

A token store is a zarr v3 store (flat_store.py): `data/tokens` (N, P) uint16, one row per frame in raster order, and
`meta/clip_ends`. It knows the tokenizer that made it by its fingerprint, and has the records (names, groups, hashes of
the pixels) of the frame store that the clips came from.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from toto_robot.data.flat_store import FlatStore
from toto_robot.data.sampling import Integers, split_by_group
from toto_robot.data.sharded_array import ShardedArray

KIND = "tokens"
MAX_VOCAB = 2**16  # of uint16; 2 bytes a token is also what 8192 codes compress to at best
_MADE_BY = "`toto_robot tokenize`"

Tokens = npt.NDArray[np.uint16]


class TokenStore:
    """Tokens on disk: append clip by clip, read windows."""

    def __init__(self, flat: FlatStore) -> None:
        self._flat = flat
        self.path = flat.path
        attributes = flat.attributes
        rows, columns = attributes["grid"]  # of tokens in a frame
        self.grid: tuple[int, int] = (rows, columns)
        self.vocab = int(attributes["vocab"])
        self.image_px = int(attributes["image_px"])
        self.tokenizer: str = attributes["tokenizer"]  # fingerprint
        self.precision: str = attributes["precision"]
        self.provenance: dict[str, Any] = attributes["provenance"]
        self.records = flat.records

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        grid: tuple[int, int],
        vocab: int,
        image_px: int,
        tokenizer: str,
        precision: str,
        provenance: Mapping[str, Any] | None = None,
    ) -> TokenStore:
        """Make an empty store of `grid` (rows, columns) tokens a frame; ValueError where `path` holds something."""
        if not 1 <= vocab <= MAX_VOCAB:
            raise ValueError(f"a token store holds vocabularies of 1 to {MAX_VOCAB} codes; got {vocab}")
        about = {"grid": list(grid), "vocab": vocab, "image_px": image_px, "tokenizer": tokenizer}
        flat = FlatStore.create(
            Path(path),
            kind=KIND,
            ends="clip_ends",
            features={"tokens": ("uint16", (grid[0] * grid[1],))},
            attributes={**about, "precision": precision, "provenance": dict(provenance or {})},
        )
        return cls(flat)

    @classmethod
    def open(cls, path: Path, *, partial: bool = False) -> TokenStore:
        """Open a finished token store (`partial`: or one that was interrupted); ValueError for anything else."""
        flat = FlatStore.open(Path(path), kind=KIND, made_by=_MADE_BY)
        if not flat.complete and not partial:
            raise ValueError(f"{path} is unfinished ({flat.items} clips so far); run the command that makes it again")
        return cls(flat)

    @property
    def tokens(self) -> ShardedArray:
        """Return all tokens (N, P); index it like an array."""
        return self._flat.data["tokens"]

    @property
    def tokens_per_frame(self) -> int:
        """Return P."""
        return self.grid[0] * self.grid[1]

    @property
    def clip_ends(self) -> npt.NDArray[np.int64]:
        """Return the cumulative ends of the clips (E,), in frames."""
        return self._flat.ends

    @property
    def clip_names(self) -> list[str]:
        """Return the names of the clips: the ids of their sources."""
        return [record["name"] for record in self.records]

    def __len__(self) -> int:
        return self._flat.items

    def bounds(self, clip: int) -> tuple[int, int]:
        """Return the rows (start, stop) of a clip."""
        return self._flat.bounds(clip)

    def window(self, start: int, frames: int, stride: int = 1) -> Tokens:
        """Return the tokens of `frames` frames from row `start` on, every `stride`-th, as (frames, P) uint16."""
        return self.tokens.read(start, start + (frames - 1) * stride + 1, stride)

    def split(self, val_fraction: float, seed: int) -> tuple[Integers, Integers]:
        """Return the ids of (training, validation) clips, the same ones that the frame store's `split` gives."""
        return split_by_group([record["group"] for record in self.records], val_fraction, seed)

    def content_hash(self) -> str:
        """Return the SHA-256 over all tokens and clips."""
        return self._flat.content_hash()

    def append(self, codes: npt.NDArray[np.integer[Any]], record: Mapping[str, Any]) -> None:
        """Add one clip: codes (T, P) and its record; on disk when this returns. ValueError where they do not fit."""
        if codes.ndim != 2 or codes.shape[1] != self.tokens_per_frame or not len(codes):
            raise ValueError(f"expected codes (T, {self.tokens_per_frame}) of at least one frame, got {codes.shape}")
        if codes.min() < 0 or codes.max() >= self.vocab:
            raise ValueError(f"codes must be in 0..{self.vocab - 1}, got {codes.min()}..{codes.max()}")
        missing = [key for key in ("name", "group", "frames") if key not in record]
        if missing:
            raise ValueError(f"the record of a clip needs {', '.join(missing)}")
        self._flat.begin()
        self._flat.write("tokens", codes.astype(np.uint16))
        self._flat.commit(record=record)
        self.records.append(dict(record))

    def finish(self) -> None:
        """Mark the store as complete."""
        self._flat.finish()

    def close(self) -> None:
        """Let another process append; reading goes on."""
        self._flat.close()
