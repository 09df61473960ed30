"""How does a store become a smaller copy that is read only, or one that grows again?

    compress_store(Path("episodes"), Path("episodes-small"))  # our rendered video: 6 times smaller, with zstd 10 times
    compress_store(Path("episodes-small"), Path("again"), codec="none")  # back: the same bytes as the first one

The copy holds what the source had committed when it was opened, of episodes or frames, also where the
source was itself compressed or written by zarr. It appears under its name when it is whole.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from tqdm import tqdm

from toto_robot.data.codecs import require_codec
from toto_robot.data.flat_store import FlatStore, store_kind
from toto_robot.data.shard_writer import write_arrays
from toto_robot.data.store_files import COMMIT, RECORDS, clear_disk_errors, records_bytes, write_root
from toto_robot.run_folder import atomic_path


def compress_store(
    source: Path,
    target: Path,
    *,
    codec: str = "blosc-lz4",
    chunk_rows: int | None = None,
    progress: bool = False,
) -> None:
    """Write a copy of the store at `source` to `target` with `codec`, one of codecs.CODECS.

    "blosc-lz4" is for training from images, "zstd" for keeping and sending ("blosc-zstd" is larger and slower, for
    readers that know no other), "none" for adding to it again: the other copies are read only. `chunk_rows` is how many
    images are compressed together: more are smaller, and slower to read at random (None: 4). ValueError where there is
    no store, `target` holds something, or the codec is unknown. OSError, with nothing left behind, where the disk is
    full.
    """
    source, target = Path(source), Path(target)
    require_codec(codec)
    kind = store_kind(source)
    if kind not in ("episodes", "frames"):
        what = f"a store of {kind}, which stays as it is" if kind else "none"
        raise ValueError(f"expected a store of episodes or frames at {source}, and there is {what}")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} exists already; delete it, or choose another path")
    store = FlatStore.open(source, kind=kind, made_by="the command that made it")
    building = target.with_name(f".{target.name}.compressing")
    shutil.rmtree(building, ignore_errors=True)
    try:
        with clear_disk_errors(target, f"{source} is untouched"):
            building.mkdir(parents=True)
            _write_copy(store, building, codec, chunk_rows, progress)
            building.rename(target)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _write_copy(store: FlatStore, building: Path, codec: str, chunk_rows: int | None, progress: bool) -> None:
    total = sum(array.nbytes for array in store.arrays.values())
    with tqdm(total=total, desc=codec, unit="B", unit_scale=True, disable=not progress) as bar:
        arrays = write_arrays(store.arrays, building, codec, chunk_rows, bar.update)
    root = _root(store, codec, arrays)
    _copy_files(store, building)
    write_root(building, root)


def _root(store: FlatStore, codec: str, arrays: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the root of the copy: that of the source with other layouts."""
    root = store.root
    root["consolidated_metadata"]["metadata"] |= arrays
    root["attributes"][COMMIT].pop("compression", None)
    if codec != "none":
        root["attributes"][COMMIT]["compression"] = codec
    return root


def _copy_files(store: FlatStore, building: Path) -> None:
    """Copy what lies beside the arrays: the committed records and what a job noted (rejected.json)."""
    for file in store.path.iterdir():
        if file.is_file() and not file.name.startswith(".") and file.name not in ("zarr.json", RECORDS):
            shutil.copyfile(file, building / file.name)
    if records := records_bytes(store.path, store.root):
        with atomic_path(building / RECORDS) as temporary:
            temporary.write_bytes(records)
