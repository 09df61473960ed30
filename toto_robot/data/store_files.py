"""Which files make up a store beside its shards, and how do they get to the disk?

The root `zarr.json` carries the metadata of every array below it ("consolidated") and is believed alone; the files of
the arrays repeat their part of it, for readers that open an array by its own path.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from toto_robot.data.shard_writer import write_all
from toto_robot.run_folder import read_json, write_json

COMMIT = "toto_robot"  # the root attribute with kind, version and lengths
RECORDS = "records.jsonl"
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

Metadata = dict[str, dict[str, Any]]  # zarr.json by path in the store


def store_kind(path: Path) -> str | None:
    """Return the kind of the store at `path` ("episodes", "frames", "tokens"), None where there is none of ours."""
    try:
        return str(json.loads((path / "zarr.json").read_text(encoding="utf-8"))["attributes"][COMMIT]["kind"])
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        return None


def group() -> dict[str, Any]:
    """Return the `zarr.json` of a group without attributes."""
    return {"attributes": {}, "zarr_format": 3, "node_type": "group"}


def new_root(commit: dict[str, Any], attributes: Mapping[str, Any], arrays: Metadata) -> dict[str, Any]:
    """Return the root `zarr.json` of an empty store with these arrays."""
    root = group()
    root["attributes"] = {COMMIT: commit, **attributes}
    root["consolidated_metadata"] = consolidated({"data": group(), "meta": group(), **arrays})
    return root


def children(path: Path, root: dict[str, Any]) -> Metadata:
    """Return the metadata of every array and group; a copy made with zarr may lack the consolidated part."""
    inline = (root.get("consolidated_metadata") or {}).get("metadata")
    if inline:
        return dict(inline)
    files = sorted([*path.glob("data/*/zarr.json"), *path.glob("meta/*/zarr.json")])
    arrays = {str(file.parent.relative_to(path)): read_json(file) for file in files}
    return {"data": group(), "meta": group(), **arrays}


def consolidated(metadata: Metadata) -> dict[str, Any]:
    """Return the consolidated part of a root `zarr.json`."""
    return {"kind": "inline", "must_understand": False, "metadata": metadata}


def write_root(path: Path, root: dict[str, Any]) -> None:
    """Write the lengths that `root` commits into every array and then, in one rename, the root itself."""
    commit = root["attributes"][COMMIT]
    for name, metadata in root["consolidated_metadata"]["metadata"].items():
        if metadata["node_type"] == "array":
            metadata["shape"][0] = commit["rows"] if name.startswith("data/") else commit["items"]
        if metadata["node_type"] == "array" or not (path / name / "zarr.json").exists():
            write_child(path / name, metadata)
    write_json(path / "zarr.json", root)


def write_child(folder: Path, metadata: dict[str, Any]) -> None:
    """Write the `zarr.json` of one array or group, for readers that open it by its own path; we read the root only.

    Written before the root, so a finished store is right throughout. In place and not flushed: a rename per array would
    cost more than the episode.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = (json.dumps(metadata, indent=2) + "\n").encode()
    with open(folder / "zarr.json", "r+b" if (folder / "zarr.json").exists() else "xb", buffering=0) as file:
        write_all(file, memoryview(text), 0)
        if os.fstat(file.fileno()).st_size > len(text):
            os.ftruncate(file.fileno(), len(text))


def append_record(path: Path, record: Mapping[str, Any]) -> int:
    """Add one line to the records of the store at `path`; return its bytes. It counts once the root says so."""
    line = (json.dumps(record) + "\n").encode()
    with open(path / RECORDS, "ab") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())
    return len(line)


def records_bytes(path: Path, root: dict[str, Any]) -> bytes:
    """Return the lines of the records that `root` commits."""
    committed = int(root["attributes"][COMMIT]["records_bytes"])
    if not committed:
        return b""
    with open(path / RECORDS, "rb") as file:
        return file.read(committed)


def number_dtype(key: str, value: Any) -> str:
    """Return the dtype that keeps a number about an item; ValueError where it is not a number."""
    if isinstance(value, (bool, np.bool_)):
        return "bool"
    if isinstance(value, (int, np.integer)):
        return "int64"
    if isinstance(value, (float, np.floating)) and np.isfinite(value):
        return "float64"
    raise ValueError(f"meta {key!r} must be a truth value, an integer or a finite number; got {value!r}")


@contextlib.contextmanager
def clear_disk_errors(path: Path, safe: str) -> Iterator[None]:
    """Say what a full disk means: `safe` names what is not touched by it."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_SPACE:
            raise
        reason = f"no space left to write {path} ({os.strerror(error.errno)}); {safe}"
        raise OSError(error.errno, f"{reason}: free some space and run the same command again") from error
