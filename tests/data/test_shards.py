"""Is what we write uncompressed plain zarr v3, and does the direct reader return what zarr returns?"""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from toto_robot.data import sharded_array, shards
from toto_robot.data.shard_writer import ShardWriter
from toto_robot.data.sharded_array import ShardedArray
from toto_robot.data.shards import DTYPES, array_metadata, parse_layout
from toto_robot.run_folder import read_json, write_json


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "MAX_CHUNK_ROWS", 4)
    monkeypatch.setattr(shards, "CHUNKS_PER_SHARD", 3)


def values(rng: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    return (rng.random(shape) * 200).astype(dtype)


def mapped(array: ShardedArray) -> bool:
    """Tell whether the first shard is read as a memmap, without looking at its chunks."""
    assert array.layout is not None
    return isinstance(array._shard(0, array.layout), np.ndarray)


def write(folder: Path, rows: np.ndarray, cuts: list[int] = []) -> ShardedArray:  # noqa: B006 (not changed)
    """Write `rows` in pieces, as a store does, and open them."""
    metadata = array_metadata(rows.dtype.name, rows.shape[1:])
    folder.mkdir(parents=True)
    layout = parse_layout(metadata)
    assert layout is not None
    writer = ShardWriter(folder, layout)
    edges = [0, *sorted(cuts), len(rows)]
    for start, stop in itertools.pairwise(edges):
        writer.write(start, rows[start:stop])
    writer.close()
    metadata["shape"][0] = len(rows)
    write_json(folder / "zarr.json", metadata)
    return ShardedArray(folder)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("row_shape", [(), (7,), (8, 8, 3)])
def test_metadata_is_what_zarr_itself_writes(tmp_path: Path, dtype: str, row_shape: tuple[int, ...]) -> None:
    ours = array_metadata(dtype, row_shape)
    layout = parse_layout(ours)
    assert layout is not None
    zarr.create_array(
        tmp_path / "a",
        shape=(0, *row_shape),
        dtype=dtype,
        chunks=(layout.chunk_rows, *row_shape),
        shards={"shape": (layout.shard_rows, *row_shape), "index_location": "start"},
        compressors=None,
        filters=None,
        chunk_key_encoding={"name": "default", "separator": "."},
    )
    assert ours == read_json(tmp_path / "a" / "zarr.json")


@pytest.mark.usefixtures("small_shards")
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    dtype=st.sampled_from(DTYPES),
    row_shape=st.sampled_from([(), (3,), (2, 2, 3)]),
    rows=st.integers(1, 60),
    data=st.data(),
)
def test_direct_reader_equals_zarr_and_numpy(
    tmp_path_factory: pytest.TempPathFactory, dtype: str, row_shape: tuple[int, ...], rows: int, data: Any
) -> None:
    truth = values(np.random.default_rng(rows), dtype, (rows, *row_shape))
    cuts = data.draw(st.lists(st.integers(0, rows), max_size=5))
    ours = write(tmp_path_factory.mktemp("s") / "a", truth, cuts)
    theirs = zarr.open_array(ours.folder, mode="r")
    start = data.draw(st.integers(0, rows))
    stop = data.draw(st.integers(start, rows))
    step = data.draw(st.integers(1, 7))
    indices = data.draw(st.lists(st.integers(-rows, rows - 1), max_size=9))
    for result, expected in [
        (ours.read(start, stop), truth[start:stop]),
        (ours.read(start, stop, step), truth[start:stop:step]),
        (ours.take(indices), truth[indices] if indices else truth[:0]),
        (ours[::-1], truth[::-1]),
        (ours[rows - 1], truth[rows - 1]),
    ]:
        assert result.dtype == expected.dtype
        np.testing.assert_array_equal(result, expected)
    np.testing.assert_array_equal(ours.read(start, stop), theirs[start:stop])
    assert mapped(ours), "must go by memmap"


def variants() -> dict[str, dict[str, Any]]:
    """Return ways in which others write the same array with zarr: keyword arguments and whether a memmap can serve."""
    return {
        "sharded, index at the end": {"chunks": (4, 6, 3), "shards": (16, 6, 3), "compressors": None, "direct": True},
        "sharded, index at the start": {
            "chunks": (4, 6, 3),
            "shards": {"shape": (16, 6, 3), "index_location": "start"},
            "compressors": None,
            "direct": True,
        },
        "unsharded": {"chunks": (8, 6, 3), "compressors": None, "direct": True},
        "default separator": {
            "chunks": (4, 6, 3),
            "shards": (16, 6, 3),
            "compressors": None,
            "chunk_key_encoding": {"name": "default", "separator": "/"},
            "direct": True,
        },
        "cut along two axes": {"chunks": (4, 3, 3), "shards": (16, 6, 3), "compressors": None, "direct": False},
        "big endian": {
            "chunks": (4, 6, 3),
            "compressors": None,
            "serializer": zarr.codecs.BytesCodec(endian="big"),
            "direct": False,
        },
    }


@pytest.mark.parametrize("name", variants())
@pytest.mark.parametrize("zeros", ["none", "a chunk", "a shard", "the end"])
def test_reads_what_zarr_wrote(tmp_path: Path, name: str, zeros: str) -> None:
    """Zarr leaves out chunks and shards of zeros, so its files have gaps."""
    options = variants()[name]
    direct = options.pop("direct")
    truth = values(np.random.default_rng(0), "uint16", (45, 6, 3)) + 1
    truth[{"none": slice(0), "a chunk": slice(4, 8), "a shard": slice(16, 32), "the end": slice(40, 45)}[zeros]] = 0
    array = zarr.create_array(tmp_path / "a", shape=truth.shape, dtype="uint16", **options)
    array[:] = truth
    ours = ShardedArray(tmp_path / "a")
    np.testing.assert_array_equal(ours.read(0, 45), truth)
    np.testing.assert_array_equal(ours.read(3, 30, 4), truth[3:30:4])
    np.testing.assert_array_equal(ours.take([44, 0, 17, 0, 5]), truth[[44, 0, 17, 0, 5]])
    assert (ours.layout is not None) == direct
    if direct and zeros == "none":
        assert mapped(ours), "must go by memmap"


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("rows", [0, 1, 11, 12, 13, 24])
def test_truncate_leaves_the_files_of_fewer_rows(tmp_path: Path, rows: int) -> None:
    truth = values(np.random.default_rng(0), "float32", (40, 5))
    write(tmp_path / "short", truth[:rows])
    cut = write(tmp_path / "long", truth)
    assert cut.layout is not None
    ShardWriter(cut.folder, cut.layout).truncate(rows)
    files = [{path.name: path.read_bytes() for path in (tmp_path / name).glob("c.*")} for name in ("short", "long")]
    assert files[0] == files[1]
    assert len(files[0]) == -(-rows // 12)


@pytest.mark.usefixtures("small_shards")
def test_an_incomplete_copy_is_not_read_as_zeros(tmp_path: Path) -> None:
    array = write(tmp_path / "a", values(np.random.default_rng(0), "float32", (40, 5)))
    shard = tmp_path / "a" / "c.1.0"
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"c\.1\.0 holds .* copy the store again"):
        array.read(0, 40)
    shard.write_bytes(b"\0" * 10 + whole[10:])
    with pytest.raises(ValueError, match="checksum"):
        ShardedArray(tmp_path / "a").read(12, 14)
    shard.write_bytes(b"")
    with pytest.raises(ValueError, match=r"c\.1\.0 is empty"):
        ShardedArray(tmp_path / "a").read(12, 14)
    shard.unlink()
    with pytest.raises(ValueError, match=r"c\.1\.0 is missing"):
        ShardedArray(tmp_path / "a").take([13])
    assert ShardedArray(tmp_path / "a").read(0, 12).shape == (12, 5), "other shards are fine"


def test_outside_is_an_error(tmp_path: Path) -> None:
    array = write(tmp_path / "a", np.zeros((5, 2), np.float32))
    for call in (lambda: array.read(0, 6), lambda: array.read(-1, 2), lambda: array.take([5]), lambda: array[-6]):
        with pytest.raises(IndexError):
            call()


def test_many_more_shards_than_open_files(tmp_path: Path, small_shards: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharded_array, "OPEN_SHARDS", 3)
    truth = values(np.random.default_rng(0), "int64", (200,))
    array = write(tmp_path / "a", truth)
    np.testing.assert_array_equal(array.take(np.arange(199, -1, -1)), truth[::-1])
    assert len(array._shards) == 3


def test_what_zarr_changed_in_a_store_of_ours_is_read(tmp_path: Path, small_shards: None) -> None:
    """Zarr rewrites the whole shard and leaves out the chunks of zeros that ours always has."""
    truth = values(np.random.default_rng(0), "uint16", (36, 6)) + 1
    ours = write(tmp_path / "a", truth)
    truth[4:12] = 0
    zarr.open_array(ours.folder, mode="r+")[:] = truth
    again = ShardedArray(ours.folder)
    np.testing.assert_array_equal(again.read(0, 36), truth)
    np.testing.assert_array_equal(again.take([13, 5, 1]), truth[[13, 5, 1]])


def test_windows_are_many_times_faster_than_through_zarr(tmp_path: Path) -> None:
    """The reason for the direct reader; it measures about 100 times, so 8 does not depend on a quiet machine."""
    truth = np.random.default_rng(0).integers(0, 2**13, (4096, 64)).astype(np.uint16)
    ours = write(tmp_path / "a", truth)
    theirs = zarr.open_array(ours.folder, mode="r")

    def best_s(read: Any) -> float:
        times = []
        for start in range(0, 4000, 100):
            before = time.perf_counter()
            read(start)
            times.append(time.perf_counter() - before)
        return min(times)

    assert best_s(lambda start: theirs[start : start + 16]) > 8 * best_s(lambda start: ours.read(start, start + 16))
