"""How does one unit of work become a shard that is there whole or not at all, and a folder of them a store?

A shard is a zarr v3 group in the layout of flat_store.py, of kind "token_shard", written once:

    zarr.json                 attributes: `TokenSpec`, the unit, the SHA-256 of the token bytes, the sources left out
    data/tokens               (N, P) uint16, uncompressed, in one zarr shard that just holds it
    meta/clip_ends            (E,) int64
    records.jsonl             name, group, source, kind, frames, fps and the SHA-256 of the tokens of every clip
    provenance.json           when, where and by which version; the only file that differs between equal jobs

It is built under a hidden name and renamed, so whoever finds `units/000123` finds all of it, and two processes that
made the same unit by mistake leave one of two equal shards.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from toto_robot.data import store_files
from toto_robot.data.flat_store import SCHEMA_VERSION, FlatStore
from toto_robot.data.shard_writer import ShardWriter
from toto_robot.data.shards import Array, array_metadata, parse_layout
from toto_robot.data.store_files import COMMIT, RECORDS
from toto_robot.data.tokens import (
    KIND,
    MANIFEST,
    PROVENANCE,
    SKIPPED,
    STORE_VERSION,
    TOKENS,
    UNITS,
    Tokens,
    TokenSpec,
    TokenStore,
    finished_units,
    total_rows,
    unit_name,
)
from toto_robot.run_folder import atomic_path, read_json, write_json, write_text

SHARD_KIND = "token_shard"
_ENDS = "meta/clip_ends"
_MADE_BY = "`toto_robot tokenize`"

Clip = tuple[npt.NDArray[np.integer[Any]], Mapping[str, Any]]  # codes (T, P), record
Skipped = Sequence[Mapping[str, str]]  # "source" and "reason" of each


def create_store(path: Path, spec: TokenSpec, manifest: str, provenance: Mapping[str, Any]) -> None:
    """Make a store of which no unit is done, whole in one rename, unless another process was faster.

    `manifest` is the text of its manifest.json.
    ValueError where `path` holds something else.
    """
    with store_files.clear_disk_errors(path, "nothing was made"), _building(path) as building:
        write_text(building / MANIFEST, manifest)
        write_json(building / PROVENANCE, provenance)
        store_files.write_child(building / UNITS, store_files.group())
        _write_root(building, spec, [], 0, complete=False)
        if not _publish(building, path) and store_files.store_kind(path) != KIND:
            raise ValueError(f"{path} exists already and is no token store; delete it, or choose another path")


def write_shard(
    path: Path, unit: int, spec: TokenSpec, clips: Sequence[Clip], skipped: Skipped, provenance: Mapping[str, Any]
) -> None:
    """Write the shard of a unit into the store at `path`; one that is there is left alone.

    ValueError where codes do not fit `spec`; OSError, with nothing left behind, where the disk is full.
    """
    folder = path / UNITS / unit_name(unit)
    codes = [_checked(spec, codes, record) for codes, record in clips]
    records = [
        {**record, "frames": len(tokens), "sha256": hashlib.sha256(tokens.data).hexdigest()}
        for tokens, (_, record) in zip(codes, clips, strict=True)
    ]
    with store_files.clear_disk_errors(path, "the units that are done are safe"), _building(folder) as building:
        rows = np.concatenate(codes) if codes else np.empty((0, spec.tokens_per_frame), np.uint16)
        about = {"unit": unit, "sha256": hashlib.sha256(rows.data).hexdigest(), "skipped": list(skipped)}
        _write_group(building, rows, records, {**spec.attributes(), **about})
        write_json(building / PROVENANCE, provenance)
        _publish(building, folder)


def write_store(path: Path, clips: Iterable[Clip], spec: TokenSpec) -> TokenStore:
    """Write tokens that were made elsewhere as a finished store of one shard.

    A clip is codes (T, P) with a record: at least "name" and "group". ValueError where they do not fit `spec`.
    """
    clips = list(clips)
    manifest = json.dumps({"settings": spec.attributes(), "units": [[record.get("name") for _, record in clips]]})
    create_store(path, spec, manifest, {})
    write_shard(path, 0, spec, clips, [], {})
    return seal_store(path, spec, 1)


def seal_store(path: Path, spec: TokenSpec, units: int) -> TokenStore:
    """List the shards of all `units` in the root of the store, in one rename, and open it.

    The bytes do not depend on who calls it, nor how often. ValueError where no shard holds a clip.
    """
    shards, skipped, records = [], [], []
    for unit in range(units):
        folder = path / UNITS / unit_name(unit)
        root = read_json(folder / "zarr.json")
        about, commit = root["attributes"], root["attributes"][COMMIT]
        shards.append(
            {"name": folder.name, "rows": commit["rows"], "clips": commit["items"], "sha256": about["sha256"]}
        )
        skipped += [{**one, "unit": folder.name} for one in about["skipped"]]
        records.append(store_files.records_bytes(folder, root))
    if not total_rows(shards):
        shown = "; ".join(f"{one['source']} {one['reason']}" for one in skipped[:5])
        more = f"; and {len(skipped) - 5} more" if len(skipped) > 5 else ""
        raise ValueError(f"none of the {len(skipped)} sources can be used: {shown}{more}")
    with store_files.clear_disk_errors(path, "all units are safe"):
        write_json(path / SKIPPED, skipped)
        with atomic_path(path / RECORDS) as temporary:
            temporary.write_bytes(b"".join(records))
        _write_root(path, spec, shards, sum(map(len, records)), complete=True)
    return TokenStore.open(path)


def remove_leftovers(path: Path) -> None:
    """Delete what killed processes left half-built, under hidden names; only where no other one works on the store."""
    for folder in [*(path / UNITS).glob(".*.building"), *path.parent.glob(f".{path.name}.*.building")]:
        shutil.rmtree(folder, ignore_errors=True)
    for file in path.glob(".*.tmp"):
        file.unlink(missing_ok=True)


def open_shard(folder: Path) -> FlatStore:
    """Open a shard; ValueError where it is none, or damaged."""
    return FlatStore.open(folder, kind=SHARD_KIND, made_by=_MADE_BY)


def first_unfinished(path: Path, units: int) -> list[int]:
    """Return the units of `units` whose shard is not there yet."""
    done = finished_units(path)
    return [unit for unit in range(units) if unit not in done]


def skipped_by_unit(path: Path) -> dict[int, set[str]]:
    """Return the names of the sources that each finished unit left out."""
    roots = {unit: read_json(path / UNITS / unit_name(unit) / "zarr.json") for unit in finished_units(path)}
    return {unit: {one["source"] for one in root["attributes"]["skipped"]} for unit, root in roots.items()}


def _checked(spec: TokenSpec, codes: npt.NDArray[np.integer[Any]], record: Mapping[str, Any]) -> Tokens:
    """Return codes as uint16; ValueError where they or their record do not fit."""
    if codes.ndim != 2 or codes.shape[1] != spec.tokens_per_frame or not len(codes):
        raise ValueError(f"expected codes (T, {spec.tokens_per_frame}) of at least one frame, got {codes.shape}")
    if codes.min() < 0 or codes.max() >= spec.vocab:
        raise ValueError(f"codes must be in 0..{spec.vocab - 1}, got {codes.min()}..{codes.max()}")
    missing = [key for key in ("name", "group") if key not in record]
    if missing:
        raise ValueError(f"the record of a clip needs {', '.join(missing)}")
    return np.ascontiguousarray(codes, np.uint16)


def _write_group(
    folder: Path, rows: Tokens, records: Sequence[Mapping[str, Any]], attributes: Mapping[str, Any]
) -> None:
    ends = np.cumsum([record["frames"] for record in records], dtype=np.int64)
    arrays: dict[str, Array] = {TOKENS: rows, _ENDS: ends}
    metadata = {
        name: array_metadata(array.dtype.name, array.shape[1:], total_rows=len(array)) for name, array in arrays.items()
    }
    lines = "".join(json.dumps(record) + "\n" for record in records).encode()
    commit = {"kind": SHARD_KIND, "schema_version": SCHEMA_VERSION, "rows": len(rows), "items": len(ends)}
    commit |= {"ends": "clip_ends", "records_bytes": len(lines), "complete": True}
    for name, array in arrays.items():
        layout = parse_layout(metadata[name])
        assert layout is not None
        (folder / name).mkdir(parents=True)
        writer = ShardWriter(folder / name, layout)
        writer.write(0, array)
        writer.close()
    with atomic_path(folder / RECORDS) as temporary:
        temporary.write_bytes(lines)
    store_files.write_root(folder, store_files.new_root(commit, attributes, metadata))


def _write_root(
    path: Path, spec: TokenSpec, shards: Sequence[Mapping[str, Any]], records_bytes: int, *, complete: bool
) -> None:
    root = store_files.group()
    items = sum(int(shard["clips"]) for shard in shards)
    commit = {"kind": KIND, "schema_version": STORE_VERSION, "rows": total_rows(shards), "items": items}
    commit |= {"records_bytes": records_bytes, "complete": complete}
    root["attributes"] = {COMMIT: commit, **spec.attributes(), "shards": list(shards)}
    write_json(path / "zarr.json", root)


@contextlib.contextmanager
def _building(folder: Path) -> Iterator[Path]:
    """Yield a new hidden folder beside `folder`, of this process alone; what is left of it at the end is deleted."""
    building = folder.with_name(f".{folder.name}.{socket.gethostname()}.{os.getpid()}.building")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    try:
        yield building
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _publish(building: Path, folder: Path) -> bool:
    """Rename a finished folder to its name and bring that to the disk; False where the name is taken."""
    try:
        os.rename(building, folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        return False
    parent = os.open(folder.parent, os.O_RDONLY)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)
    return True
