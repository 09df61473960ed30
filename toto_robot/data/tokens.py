"""Where do the tokens of all clips lie, and how is a window of them read fast?

A token store is a folder of shards (token_shards.py), one for each unit of work of the job that made it:

    zarr.json                 what the tokens mean (`TokenSpec`), and the list of shards: THE COMMIT
    manifest.json             what each unit is made of (manifest.py), written before the first one
    records.jsonl             one JSON object per clip, those of all shards in order
    skipped.json              the sources that were left out, with their reasons
    provenance.json           what planned the job; each shard says what made it
    units/000000/, ...        the shards: zarr v3 groups, `data/tokens` (N, P) uint16, a row per frame in raster order

A reader sees the tokens of all shards as one array, clip after clip. It believes the root's `zarr.json` alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from toto_robot.data.joined_array import JoinedArray
from toto_robot.data.mixture import Rows
from toto_robot.data.sampling import Integers, split_by_group
from toto_robot.data.store_files import COMMIT, records_bytes, store_kind
from toto_robot.run_folder import read_json

KIND = "tokens"
UNITS = "units"
TOKENS = "data/tokens"
MANIFEST, PROVENANCE, SKIPPED = "manifest.json", "provenance.json", "skipped.json"
STORE_VERSION = 2  # 1 was a single growing array
MAX_VOCAB = 2**16  # of uint16; 2 bytes a token is also what 8192 codes compress to at best
_MADE_BY = "`toto_robot tokenize`"

Tokens = npt.NDArray[np.uint16]


@dataclass(frozen=True, kw_only=True)
class TokenSpec:
    """What decides what a token means."""

    grid: tuple[int, int]  # rows and columns of tokens in a frame
    vocab: int
    image_px: int  # side of the frames that were encoded
    tokenizer: str  # fingerprint
    precision: str  # fp32 | bf16: another one moves a few per cent of the codes

    def __post_init__(self) -> None:
        if not 1 <= self.vocab <= MAX_VOCAB:
            raise ValueError(f"a token store holds vocabularies of 1 to {MAX_VOCAB} codes; got {self.vocab}")

    @property
    def tokens_per_frame(self) -> int:
        """Return P."""
        return self.grid[0] * self.grid[1]

    def attributes(self) -> dict[str, Any]:
        """Return the values as JSON has them."""
        return {**asdict(self), "grid": list(self.grid)}

    @classmethod
    def of(cls, attributes: Mapping[str, Any]) -> TokenSpec:
        """Read the values from the attributes of a store or shard."""
        values = {key: attributes[key] for key in cls.__dataclass_fields__}
        return cls(**{**values, "grid": tuple(values["grid"])})


class TokenStore:
    """Tokens on disk: clips one after the other, read in windows."""

    def __init__(self, path: Path, root: Mapping[str, Any]) -> None:
        self.path = path
        attributes = root["attributes"]
        self.spec = TokenSpec.of(attributes)
        self.shards: list[dict[str, Any]] = attributes["shards"]  # name, rows, clips, sha256
        lines = records_bytes(path, dict(root)).splitlines()
        self.records: list[dict[str, Any]] = [json.loads(line) for line in lines]
        filled = [shard for shard in self.shards if shard["rows"]]
        self.tokens = JoinedArray(
            [path / UNITS / shard["name"] / TOKENS for shard in filled],
            [shard["rows"] for shard in filled],
            (self.spec.tokens_per_frame,),
            "uint16",
        )
        self.clip_ends: npt.NDArray[np.int64] = np.cumsum([record["frames"] for record in self.records], dtype=np.int64)
        if len(self) != attributes[COMMIT]["items"] or len(self.tokens) != (self.clip_ends[-1] if len(self) else 0):
            raise ValueError(f"{path} is damaged: its records do not add up to its {len(self.tokens)} rows; copy it")

    @classmethod
    def open(cls, path: Path) -> TokenStore:
        """Open a finished token store; ValueError for anything else, with how far it is where it is unfinished."""
        path = Path(path)
        root = open_root(path)
        if not root["attributes"][COMMIT]["complete"]:
            done, planned = len(finished_units(path)), len(read_json(path / MANIFEST)["units"])
            raise ValueError(
                f"{path} is unfinished ({done} of {planned} units so far); run the command that makes it again"
            )
        return cls(path, root)

    @property
    def grid(self) -> tuple[int, int]:
        """Return (rows, columns) of tokens in a frame."""
        return self.spec.grid

    @property
    def tokens_per_frame(self) -> int:
        """Return P."""
        return self.spec.tokens_per_frame

    @property
    def vocab(self) -> int:
        """Return the number of codes."""
        return self.spec.vocab

    @property
    def image_px(self) -> int:
        """Return the side of the frames that were encoded, pixels."""
        return self.spec.image_px

    @property
    def tokenizer(self) -> str:
        """Return the fingerprint of the tokenizer."""
        return self.spec.tokenizer

    @property
    def precision(self) -> str:
        """Return the precision that the tokenizer ran with."""
        return self.spec.precision

    @property
    def provenance(self) -> dict[str, Any]:
        """Return what planned the job."""
        return dict(read_json(self.path / PROVENANCE))

    @property
    def skipped(self) -> list[dict[str, str]]:
        """Return the sources that were left out: "source", "reason" and "unit" of each."""
        return list(read_json(self.path / SKIPPED))

    @property
    def clip_names(self) -> list[str]:
        """Return the names of the clips: the ids of their sources."""
        return [record["name"] for record in self.records]

    def __len__(self) -> int:
        return len(self.records)

    def bounds(self, clip: int) -> tuple[int, int]:
        """Return the rows (start, stop) of a clip; IndexError outside the store."""
        if not 0 <= clip < len(self):
            raise IndexError(f"clip {clip} is outside the {len(self)} clips of {self.path}")
        return (int(self.clip_ends[clip - 1]) if clip else 0), int(self.clip_ends[clip])

    def window(self, start: int, frames: int, stride: int = 1) -> Tokens:
        """Return the tokens of `frames` frames from row `start` on, every `stride`-th, as (frames, P) uint16."""
        return self.windows([range(start, start + (frames - 1) * stride + 1, stride)])[0]

    def windows(self, windows: Sequence[Rows]) -> Tokens:
        """Return the tokens of the T frames of each window, as (B, T, P) uint16: what a batch is read with."""
        return self.tokens.windows(windows)

    def split(self, val_fraction: float, seed: int) -> tuple[Integers, Integers]:
        """Return the ids of (training, validation) clips, the same ones that the frame store's `split` gives."""
        return split_by_group([record["group"] for record in self.records], val_fraction, seed)

    def fingerprint(self) -> str:
        """Return the SHA-256 over the tokens and names of all clips, from the hashes taken when they were written."""
        return hashlib.sha256(repr([(r["name"], r["sha256"]) for r in self.records]).encode()).hexdigest()


def open_root(path: Path) -> dict[str, Any]:
    """Return the `zarr.json` of a token store, finished or not; ValueError where there is none of this version."""
    found = store_kind(path)
    if found != KIND:
        what = "does not exist" if not path.exists() else f"is a store of {found}" if found else "is not one"
        raise ValueError(f"expected a store of {KIND} at {path}, which {what}; make one with {_MADE_BY}")
    root: dict[str, Any] = read_json(path / "zarr.json")
    version = root["attributes"][COMMIT]["schema_version"]
    if version != STORE_VERSION:
        raise ValueError(
            f"{path} has schema version {version}, this program reads version {STORE_VERSION}: "
            f"delete it and make it again with {_MADE_BY}, or use the version of toto_robot that made it"
        )
    return root


def unit_name(unit: int) -> str:
    """Return the name of the shard of a unit."""
    return f"{unit:06d}"


def finished_units(path: Path) -> set[int]:
    """Return the units whose shard is there: shards appear whole."""
    return {int(folder.name) for folder in (path / UNITS).iterdir() if folder.name.isdigit()}


def count_used_codes(tokens: TokenStore, sample_frames: int = 4096) -> int:
    """Return how many different codes occur in an even sample of the frames: few of them mean a collapsed tokenizer."""
    step = max(1, len(tokens.tokens) // sample_frames)
    return len(np.unique(tokens.tokens[::step]))


def total_rows(shards: Sequence[Mapping[str, Any]]) -> int:
    """Return the frames of all shards."""
    return sum(int(shard["rows"]) for shard in shards)
