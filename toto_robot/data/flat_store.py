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

A store grows uncompressed, because rows have to go to known places. Created with `compression`, it is compressed by
`finish`: the compressed shards are written beside the others (shards.py), the same rename of the root puts them in
force, and then the others are deleted. From there on it is read only; `compress.py` makes copies, also back.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import json
import os
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from toto_robot.data import store_files
from toto_robot.data.codecs import require_codec
from toto_robot.data.shard_writer import ShardWriter, drop_compressed, drop_replaced, write_arrays
from toto_robot.data.sharded_array import ShardedArray
from toto_robot.data.shards import Array, array_metadata
from toto_robot.data.store_files import COMMIT, RECORDS
from toto_robot.data.store_files import store_kind as store_kind
from toto_robot.run_folder import lock_folder, read_json

Numbers = Mapping[str, bool | int | float]
SCHEMA_VERSION = 1


class FlatStore:
    """A store of one kind: `data` arrays of equal length, cut into items by `ends`."""

    def __init__(self, path: Path, root: dict[str, Any]) -> None:
        self.path = path
        self._root = root
        self._writers: dict[str, ShardWriter] = {}
        self._lock: io.TextIOWrapper | None = None
        self._tails: dict[str, int] = {}
        self._clean = False  # True once nothing uncommitted is left in the files
        self.data = self._open_arrays("data", self.rows)
        self._meta = self._open_arrays("meta", self.items)
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
        compression: str | None = None,
    ) -> Self:
        """Make an empty store; `features` maps key to (dtype, row shape). ValueError where `path` holds something.

        `compression` is the codec (codecs.CODECS) that `finish` compresses the store with; None keeps it as it grows.
        """
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise ValueError(f"{path} exists already; open it to continue, or delete it, or choose another path")
        arrays = {f"data/{key}": array_metadata(dtype, shape) for key, (dtype, shape) in features.items()}
        arrays[f"meta/{ends}"] = array_metadata("int64", ())
        commit: dict[str, Any] = {"kind": kind, "schema_version": SCHEMA_VERSION, "rows": 0, "items": 0, "ends": ends}
        commit |= {"records_bytes": 0, "complete": False}
        if compression is not None:
            require_codec(compression)
            commit["compression"] = compression
        root = store_files.new_root(commit, attributes, arrays)
        building = path.with_name(f".{path.name}.creating")  # appears under its name only when whole
        shutil.rmtree(building, ignore_errors=True)
        with store_files.clear_disk_errors(path, "nothing was made"):
            store_files.write_root(building, root)
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
        version = root["attributes"][COMMIT]["schema_version"]
        if version != SCHEMA_VERSION:
            raise ValueError(
                f"{path} has schema version {version}, this program reads version {SCHEMA_VERSION}: "
                f"make it again with {made_by}, or use the version of toto_robot that made it"
            )
        return cls(path, root)

    # What is committed

    @property
    def _commit(self) -> dict[str, Any]:
        commit: dict[str, Any] = self._root["attributes"][COMMIT]
        return commit

    @property
    def attributes(self) -> dict[str, Any]:
        """Return what the maker said about the store at its creation."""
        return {key: value for key, value in self._root["attributes"].items() if key != COMMIT}

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
    def compression(self) -> str | None:
        """Return the codec that the store is compressed with, or will be by `finish`; None where it stays as it is."""
        codec: str | None = self._commit.get("compression")
        return None if codec == "none" else codec

    @property
    def root(self) -> dict[str, Any]:
        """Return a copy of the root `zarr.json`, with the metadata of all arrays."""
        arrays = store_files.consolidated(store_files.children(self.path, self._root))
        return copy.deepcopy({**self._root, "consolidated_metadata": arrays})

    @property
    def arrays(self) -> dict[str, ShardedArray]:
        """Return all arrays by their path in the store."""
        data = {f"data/{key}": array for key, array in self.data.items()}
        return data | {f"meta/{key}": array for key, array in self._meta.items()}

    @property
    def meta(self) -> dict[str, Array]:
        """Return the numbers of all items: name to (E,)."""
        return {key: array.read(0, self.items) for key, array in self._meta.items() if key != self._commit["ends"]}

    @property
    def records(self) -> list[dict[str, Any]]:
        """Return the records of all items; empty where the store keeps none."""
        return [json.loads(line) for line in store_files.records_bytes(self.path, self._root).splitlines()]

    def bounds(self, item: int) -> tuple[int, int]:
        """Return the rows (start, stop) of an item; IndexError outside the store."""
        if not 0 <= item < self.items:
            raise IndexError(f"item {item} is outside the {self.items} items of {self.path}")
        return (int(self.ends[item - 1]) if item else 0), int(self.ends[item])

    def content_hash(self, items: int | None = None) -> str:
        """Return the SHA-256 over the committed arrays and records of all items or the first ones.

        Times, machine and other provenance stay out. IndexError for more items than there are.
        """
        items = self.items if items is None else items
        rows = self.bounds(items - 1)[1] if items else 0
        digest = hashlib.sha256(json.dumps([items, rows, self.records[:items]]).encode())
        data = {f"data/{key}": (array, rows) for key, array in self.data.items()}
        arrays = {**data, **{key: (array, items) for key, array in self._meta.items()}}
        for name, (array, length) in sorted(arrays.items()):
            digest.update(f"{name} {array.dtype} {(length, *array.shape[1:])}".encode())
            for start in range(0, length, 1024):
                digest.update(array.read(start, min(start + 1024, length)).data)
        return digest.hexdigest()

    # Writing

    def begin(self) -> None:
        """Start an item and forget what was written since the last commit.

        ValueError where another process is writing, or the store is compressed or in another layout than it grows in.
        """
        self._require_in_place()
        self._take_lock()
        if not self._clean:
            self._recover()
        self._tails = dict.fromkeys(self.data, self.rows)

    def write(self, key: str, rows: Array) -> None:
        """Add rows (n, ...) of the array's dtype to `data/<key>`; OSError with advice where the disk is full."""
        self._clean = False
        with self._clear_disk_errors():
            self._writer(f"data/{key}").write(self._tails[key], rows)
        self._tails[key] += len(rows)

    def commit(self, meta: Numbers | None = None, record: Mapping[str, Any] | None = None) -> None:
        """Make what was written since `begin` one more item, in one rename; OSError leaves the store as it was."""
        stops = set(self._tails.values())
        assert len(stops) == 1 and min(stops) > self.rows, f"every key needs the same new rows: {self._tails}"
        root, stop = copy.deepcopy(self._root), stops.pop()
        self._clean = False
        with self._clear_disk_errors():
            new = self._write_meta({self._commit["ends"]: stop, **(meta or {})}, root)
            root["attributes"][COMMIT] |= {"rows": stop, "items": self.items + 1, "complete": False}
            if record is not None:
                root["attributes"][COMMIT]["records_bytes"] += store_files.append_record(self.path, record)
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
        """Mark the store as complete, and compress it where that was asked for: the job has nothing more to add.

        A kill at any moment leaves the store as it was, or finished; calling this again ends in the same bytes. Other
        processes that read while it is compressed have to open it again.
        """
        if not self.complete:
            self.begin()
            root = copy.deepcopy(self._root)
            root["attributes"][COMMIT]["complete"] = True
            self._clean = False
            with self._clear_disk_errors():
                if self.compression:
                    new = write_arrays(self.arrays, self.path, self.compression)
                    root["consolidated_metadata"]["metadata"] |= new
                self._replace_root(root)
            self._clean = True
            self._close_writers()
            self.data = self._open_arrays("data", self.rows)
            self._meta = self._open_arrays("meta", self.items)
        if self.compression:  # also what a killed `finish` left
            drop_replaced(self.arrays)

    def drop(self, keys: Collection[str], attributes: Mapping[str, Any]) -> None:
        """Forget the arrays `data/<key>` and delete their files, with `attributes` in the place of those of the store.

        A kill leaves the store with the arrays or without them; calling this again deletes what a kill has left.
        """
        if set(keys) & set(self.data):
            self.begin()
            root = copy.deepcopy(self._root)
            kept = {
                name: metadata
                for name, metadata in store_files.children(self.path, root).items()
                if name.removeprefix("data/") not in keys
            }
            root["attributes"] = {COMMIT: self._commit, **attributes}
            root["consolidated_metadata"] = store_files.consolidated(kept)
            self._close_writers()
            self._replace_root(root)
            self.data = self._open_arrays("data", self.rows)
        for key in keys:
            shutil.rmtree(self.path / "data" / key, ignore_errors=True)

    def close(self) -> None:
        """Let another process write; reading goes on."""
        self._close_writers()
        if self._lock is not None:
            self._lock.close()
        self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _open_arrays(self, room: str, rows: int) -> dict[str, ShardedArray]:
        return {
            name.removeprefix(f"{room}/"): ShardedArray(self.path / name, metadata, rows)
            for name, metadata in store_files.children(self.path, self._root).items()
            if name.startswith(f"{room}/") and metadata["node_type"] == "array"
        }

    def _require_in_place(self) -> None:
        for name, array in self.arrays.items():
            if array.layout is None or not array.layout.in_place:
                made = f"compressed ({self.compression})" if self.compression else f"in another zarr layout ({name})"
                raise ValueError(
                    f"{self.path} is {made}: it can only be read. To add to it, make a copy that grows with "
                    f"toto_robot.data.compress.compress_store(source, target, codec='none'), and add to that"
                )

    def _take_lock(self) -> None:
        if self._lock is None:
            self._lock = lock_folder(self.path)
        if read_json(self.path / "zarr.json") != self._root:
            raise ValueError(f"{self.path} was changed by another writer since it was opened; open it again")

    def _recover(self) -> None:
        """Bring all files back to the last commit, as if what was written since had never been."""
        for leftover in self.path.rglob(".*.tmp"):
            leftover.unlink()
        self._close_writers()
        for folder in (self.path / "meta").iterdir():
            if folder.is_dir() and folder.name not in self._meta:
                shutil.rmtree(folder)  # of a first item that was never committed
        for name in self.arrays:
            drop_compressed(self.path / name)  # of a `finish` that was killed
            self._writer(name).truncate(self.rows if name.startswith("data/") else self.items)
        if (self.path / RECORDS).exists():
            os.truncate(self.path / RECORDS, self._commit["records_bytes"])
        for array in self.arrays.values():
            array.grow(array.rows)
        self._clean = True

    def _close_writers(self) -> None:
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()

    def _writer(self, name: str) -> ShardWriter:
        if name not in self._writers:
            layout = self.arrays[name].layout
            assert layout is not None
            self._writers[name] = ShardWriter(self.path / name, layout)
        return self._writers[name]

    def _write_meta(self, values: Numbers, root: dict[str, Any]) -> dict[str, ShardedArray]:
        """Write the numbers of a new item; the first item decides which there are, and the new arrays are returned."""
        new: dict[str, ShardedArray] = {}
        metadata = root["consolidated_metadata"]["metadata"]
        for key in sorted(set(values) - set(self._meta)) if self.items == 0 else ():
            metadata[f"meta/{key}"] = array_metadata(store_files.number_dtype(key, values[key]), ())
            store_files.write_child(self.path / "meta" / key, metadata[f"meta/{key}"])
            new[key] = ShardedArray(self.path / "meta" / key, metadata[f"meta/{key}"])
        arrays = {**self._meta, **new}
        if set(values) != set(arrays):
            expected, got = (", ".join(sorted(set(keys) - {self._commit["ends"]})) for keys in (arrays, values))
            raise ValueError(f"the meta of every item of {self.path} has the keys [{expected}]; got [{got}]")
        for key, value in values.items():
            dtype = store_files.number_dtype(key, value)
            if dtype != arrays[key].dtype.name and (dtype, arrays[key].dtype.name) != ("int64", "float64"):
                raise ValueError(f"meta {key!r} is {arrays[key].dtype.name} in {self.path}; got {value!r}")
            layout = arrays[key].layout
            assert layout is not None
            writer = self._writers.setdefault(f"meta/{key}", ShardWriter(self.path / "meta" / key, layout))
            writer.write(self.items, np.asarray([value], arrays[key].dtype))
        return new

    def _replace_root(self, root: dict[str, Any]) -> None:
        store_files.write_root(self.path, root)
        self._root = root

    def _clear_disk_errors(self) -> contextlib.AbstractContextManager[None]:
        return store_files.clear_disk_errors(self.path, f"its {self.items} whole items are safe")
