"""How do arrays that grow together in time lie on disk, so that a kill at any moment leaves a whole number of items?

A store is a zarr v3 group, flat in time as in diffusion_policy's ReplayBuffer:

    zarr.json             attributes, and the metadata of every array below ("consolidated"): THE COMMIT
    data/<key>            (N, ...): all items (episodes, clips) one after the other
    meta/<ends>           (E,) int64: cumulative ends; item i is rows ends[i-1] to ends[i]
    meta/<name>           (E,): one number or truth value per item
    records.jsonl         one JSON object per item, where a store keeps names

To append, rows are written behind the last committed ones and flushed, and then the root `zarr.json`, which holds the
lengths of all arrays, is replaced in one rename. A reader believes that file alone, so what a killed or failed writer
left behind does not exist; the next writer zeroes it first, so a resumed job ends in the same bytes as one that was
never killed. Plain `zarr.open(path)` reads the root file too and sees exactly the committed items at any time.

One process writes at a time (a lock that dies with it); any number read what was committed when they opened the store.
"""

from __future__ import annotations

import contextlib
import copy
import errno
import fcntl
import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from toto_robot.data.shards import Array, ShardedArray, ShardWriter, array_metadata, write_all
from toto_robot.run_folder import read_json, write_json

Numbers = Mapping[str, bool | int | float]
SCHEMA_VERSION = 1
_COMMIT = "toto_robot"  # the root attribute with kind, version and lengths
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def store_kind(path: Path) -> str | None:
    """Return the kind of the store at `path` ("episodes", "frames", "tokens"), None where there is none of ours."""
    try:
        return str(json.loads((path / "zarr.json").read_text(encoding="utf-8"))["attributes"][_COMMIT]["kind"])
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        return None


class FlatStore:
    """A store of one kind: `data` arrays of equal length, cut into items by `ends`."""

    def __init__(self, path: Path, root: dict[str, Any]) -> None:
        self.path = path
        self._root = root
        self._writers: dict[str, ShardWriter] = {}
        self._lock: io.TextIOWrapper | None = None
        self._tails: dict[str, int] = {}
        self._clean = False  # True once nothing uncommitted is left in the files
        children = _children(path, root)
        self.data = {
            name.removeprefix("data/"): ShardedArray(path / name, metadata, self.rows)
            for name, metadata in children.items()
            if name.startswith("data/")
        }
        self._meta = {
            name.removeprefix("meta/"): ShardedArray(path / name, metadata, self.items)
            for name, metadata in children.items()
            if name.startswith("meta/")
        }
        self.ends: npt.NDArray[np.int64] = self._meta[self._commit["ends"]].read(0, self.items)
        if self.items and self.ends[-1] != self.rows:
            raise ValueError(f"{path} is damaged: its items end at row {self.ends[-1]} of {self.rows}; copy it again")

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        kind: str,
        ends: str,
        features: Mapping[str, tuple[str, tuple[int, ...]]],
        attributes: Mapping[str, Any],
    ) -> Self:
        """Make an empty store; `features` maps key to (dtype, row shape). ValueError where `path` holds something."""
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise ValueError(f"{path} exists already; open it to continue, or delete it, or choose another path")
        children: dict[str, dict[str, Any]] = {"data": _group(), "meta": _group()}
        children |= {f"data/{key}": array_metadata(dtype, shape) for key, (dtype, shape) in features.items()}
        children[f"meta/{ends}"] = array_metadata("int64", ())
        commit = {"kind": kind, "schema_version": SCHEMA_VERSION, "rows": 0, "items": 0, "ends": ends}
        root = _group()
        root["attributes"] = {_COMMIT: {**commit, "records_bytes": 0, "complete": False}, **attributes}
        root["consolidated_metadata"] = {"kind": "inline", "must_understand": False, "metadata": children}
        building = path.with_name(f".{path.name}.creating")  # appears under its name only when whole
        shutil.rmtree(building, ignore_errors=True)
        with _clear_disk_errors(path, 0):
            for name, metadata in children.items():
                _write_child(building / name, metadata)
            write_json(building / "zarr.json", root)
            building.rename(path)
        return cls(path, read_json(path / "zarr.json"))

    @classmethod
    def open(cls, path: Path, *, kind: str, made_by: str) -> Self:
        """Open the committed part of a store; ValueError where `path` is not one of this kind and schema version."""
        found = store_kind(path)
        if found != kind:
            what = "does not exist" if not path.exists() else f"is a store of {found}" if found else "is not one"
            raise ValueError(f"expected a store of {kind} at {path}, which {what}; make one with {made_by}")
        root = read_json(path / "zarr.json")
        version = root["attributes"][_COMMIT]["schema_version"]
        if version != SCHEMA_VERSION:
            raise ValueError(
                f"{path} has schema version {version}, this program reads version {SCHEMA_VERSION}: "
                f"make it again with {made_by}, or use the version of toto_robot that made it"
            )
        return cls(path, root)

    # What is committed

    @property
    def _commit(self) -> dict[str, Any]:
        commit: dict[str, Any] = self._root["attributes"][_COMMIT]
        return commit

    @property
    def attributes(self) -> dict[str, Any]:
        """Return what the maker said about the store at its creation."""
        return {key: value for key, value in self._root["attributes"].items() if key != _COMMIT}

    @property
    def rows(self) -> int:
        """Return the committed length of the data arrays."""
        return int(self._commit["rows"])

    @property
    def items(self) -> int:
        """Return the number of committed items."""
        return int(self._commit["items"])

    @property
    def complete(self) -> bool:
        """Return whether the job that fills the store has called `finish`."""
        return bool(self._commit["complete"])

    @property
    def meta(self) -> dict[str, Array]:
        """Return the numbers of all items: name to (E,)."""
        return {key: array.read(0, self.items) for key, array in self._meta.items() if key != self._commit["ends"]}

    @property
    def records(self) -> list[dict[str, Any]]:
        """Return the records of all items; empty where the store keeps none."""
        if not self._commit["records_bytes"]:
            return []
        with open(self.path / "records.jsonl", "rb") as file:
            return [json.loads(line) for line in file.read(self._commit["records_bytes"]).splitlines()]

    def bounds(self, item: int) -> tuple[int, int]:
        """Return the rows (start, stop) of an item; IndexError outside the store."""
        if not 0 <= item < self.items:
            raise IndexError(f"item {item} is outside the {self.items} items of {self.path}")
        return (int(self.ends[item - 1]) if item else 0), int(self.ends[item])

    def content_hash(self) -> str:
        """Return the SHA-256 over all committed arrays and records; times, machine and other provenance stay out."""
        digest = hashlib.sha256(json.dumps([self.items, self.rows, self.records]).encode())
        arrays = {**{f"data/{key}": array for key, array in self.data.items()}, **self._meta}
        for name, array in sorted(arrays.items()):
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            for start in range(0, len(array), 1024):
                digest.update(array.read(start, min(start + 1024, len(array))).data)
        return digest.hexdigest()

    # Writing

    def begin(self) -> None:
        """Start an item and forget what was written since the last commit; ValueError where another writer is at it."""
        self._take_lock()
        if not self._clean:
            self._recover()
        self._tails = dict.fromkeys(self.data, self.rows)

    def write(self, key: str, rows: Array) -> None:
        """Add rows (n, ...) of the array's dtype to `data/<key>`; OSError with advice where the disk is full."""
        self._clean = False
        with _clear_disk_errors(self.path, self.items):
            self._writer(f"data/{key}").write(self._tails[key], rows)
        self._tails[key] += len(rows)

    def commit(self, meta: Numbers | None = None, record: Mapping[str, Any] | None = None) -> None:
        """Make what was written since `begin` one more item, in one rename; OSError leaves the store as it was."""
        stops = set(self._tails.values())
        assert len(stops) == 1 and min(stops) > self.rows, f"every key needs the same new rows: {self._tails}"
        root, stop = copy.deepcopy(self._root), stops.pop()
        self._clean = False
        with _clear_disk_errors(self.path, self.items):
            new = self._write_meta({self._commit["ends"]: stop, **(meta or {})}, root)
            root["attributes"][_COMMIT] |= {"rows": stop, "items": self.items + 1, "complete": False}
            if record is not None:
                root["attributes"][_COMMIT]["records_bytes"] += self._write_record(record)
            for writer in self._writers.values():
                writer.flush()
            self._replace_root(root)
        self._meta |= new
        for array in self.data.values():
            array.grow(self.rows)
        for array in self._meta.values():
            array.grow(self.items)
        self.ends = np.append(self.ends, np.int64(stop))
        self._clean = True

    def finish(self) -> None:
        """Mark the store as complete: the job that fills it has nothing more to add."""
        if self.complete:
            return
        self.begin()
        root = copy.deepcopy(self._root)
        root["attributes"][_COMMIT]["complete"] = True
        with _clear_disk_errors(self.path, self.items):
            self._replace_root(root)

    def close(self) -> None:
        """Let another process write; reading goes on."""
        for writer in self._writers.values():
            writer.close()
        if self._lock is not None:
            self._lock.close()
        self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _take_lock(self) -> None:
        if self._lock is None:
            # POSIX locks: a worker process that outlives a killed parent does not inherit this one.
            lock = open(self.path / ".lock", "a")  # noqa: SIM115 (held until close)
            try:
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                lock.close()
                raise ValueError(f"another process is writing to {self.path}; wait for it or stop it") from error
            self._lock = lock
        if read_json(self.path / "zarr.json") != self._root:
            raise ValueError(f"{self.path} was changed by another writer since it was opened; open it again")

    def _recover(self) -> None:
        """Bring all files back to the last commit, as if what was written since had never been."""
        for leftover in self.path.rglob(".*.tmp"):
            leftover.unlink()
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()
        for folder in (self.path / "meta").iterdir():
            if folder.is_dir() and folder.name not in self._meta:
                shutil.rmtree(folder)  # of a first item that was never committed
        names = [f"data/{key}" for key in self.data] + [f"meta/{key}" for key in self._meta]
        for name in names:
            self._writer(name).truncate(self.rows if name.startswith("data/") else self.items)
        records = self.path / "records.jsonl"
        if records.exists():
            os.truncate(records, self._commit["records_bytes"])
        for array in [*self.data.values(), *self._meta.values()]:
            array.grow(array.rows)
        self._clean = True

    def _writer(self, name: str) -> ShardWriter:
        if name not in self._writers:
            room, key = name.split("/", 1)
            layout = (self.data if room == "data" else self._meta)[key].layout
            if layout is None or layout.index != "start":
                raise ValueError(f"{self.path} is a copy in another zarr layout ({name}): it can only be read")
            self._writers[name] = ShardWriter(self.path / name, layout)
        return self._writers[name]

    def _write_meta(self, values: Numbers, root: dict[str, Any]) -> dict[str, ShardedArray]:
        """Write the numbers of a new item; the first item decides which there are, and the new arrays are returned."""
        new: dict[str, ShardedArray] = {}
        children = root["consolidated_metadata"]["metadata"]
        for key in sorted(set(values) - set(self._meta)) if self.items == 0 else ():
            children[f"meta/{key}"] = array_metadata(_meta_dtype(key, values[key]), ())
            _write_child(self.path / "meta" / key, children[f"meta/{key}"])
            new[key] = ShardedArray(self.path / "meta" / key, children[f"meta/{key}"])
        arrays = {**self._meta, **new}
        if set(values) != set(arrays):
            expected, got = (", ".join(sorted(set(keys) - {self._commit["ends"]})) for keys in (arrays, values))
            raise ValueError(f"the meta of every item of {self.path} has the keys [{expected}]; got [{got}]")
        for key, value in values.items():
            dtype = _meta_dtype(key, value)
            if dtype != arrays[key].dtype.name and (dtype, arrays[key].dtype.name) != ("int64", "float64"):
                raise ValueError(f"meta {key!r} is {arrays[key].dtype.name} in {self.path}; got {value!r}")
            layout = arrays[key].layout
            assert layout is not None
            writer = self._writers.setdefault(f"meta/{key}", ShardWriter(self.path / "meta" / key, layout))
            writer.write(self.items, np.asarray([value], arrays[key].dtype))
        return new

    def _write_record(self, record: Mapping[str, Any]) -> int:
        line = (json.dumps(record) + "\n").encode()
        with open(self.path / "records.jsonl", "ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        return len(line)

    def _replace_root(self, root: dict[str, Any]) -> None:
        commit = root["attributes"][_COMMIT]
        for name, metadata in root["consolidated_metadata"]["metadata"].items():
            if metadata["node_type"] == "array":
                metadata["shape"][0] = commit["rows"] if name.startswith("data/") else commit["items"]
                _write_child(self.path / name, metadata)
        write_json(self.path / "zarr.json", root)
        self._root = root


def _group() -> dict[str, Any]:
    return {"attributes": {}, "zarr_format": 3, "node_type": "group"}


def _write_child(folder: Path, metadata: dict[str, Any]) -> None:
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


def _children(path: Path, root: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the metadata of every array by its path; a copy made with zarr may lack the consolidated part."""
    consolidated = (root.get("consolidated_metadata") or {}).get("metadata")
    if consolidated:
        return {name: metadata for name, metadata in consolidated.items() if metadata["node_type"] == "array"}
    files = sorted([*path.glob("data/*/zarr.json"), *path.glob("meta/*/zarr.json")])
    return {str(file.parent.relative_to(path)): read_json(file) for file in files}


def _meta_dtype(key: str, value: Any) -> str:
    if isinstance(value, (bool, np.bool_)):
        return "bool"
    if isinstance(value, (int, np.integer)):
        return "int64"
    if isinstance(value, (float, np.floating)) and np.isfinite(value):
        return "float64"
    raise ValueError(f"meta {key!r} must be a truth value, an integer or a finite number; got {value!r}")


@contextlib.contextmanager
def _clear_disk_errors(path: Path, items: int) -> Iterator[None]:
    """Say what a full disk means for the store."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_SPACE:
            raise
        reason = f"no space left to write {path} ({os.strerror(error.errno)}); its {items} whole items are safe"
        raise OSError(error.errno, f"{reason}: free some space and run the same command again") from error
