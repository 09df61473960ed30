"""Does the direct reader return what zarr returns from compressed arrays, and are compressed copies true and safe?"""

from __future__ import annotations

import errno
import itertools
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from crash import all_files, killed_at
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_episodes import collect, episode, meta
from test_shards import values
from zarr.codecs import BloscCodec, Crc32cCodec, GzipCodec, ZstdCodec

from toto_robot.data import shards
from toto_robot.data.codecs import CODECS
from toto_robot.data.compress import compress_store
from toto_robot.data.episodes import EpisodeStore
from toto_robot.data.shard_writer import write_array
from toto_robot.data.sharded_array import EncodedShard, ShardedArray
from toto_robot.data.shards import DTYPES, array_metadata, parse_layout
from toto_robot.run_folder import read_json, write_json

COMPRESSED = tuple(name for name in CODECS if name != "none")
ROWS = 45

FOREIGN: dict[str, list[Any]] = {  # what others compress with, as zarr's own codecs
    "zarr's default": [ZstdCodec()],
    "zstd with a checksum of its own": [ZstdCodec(level=3, checksum=True)],
    "blosc lz4": [BloscCodec(cname="lz4", clevel=5)],
    "blosc lz4, bytes shuffled": [BloscCodec(cname="lz4", clevel=5, shuffle="shuffle")],
    "blosc lz4, bits shuffled": [BloscCodec(cname="lz4", clevel=1, shuffle="bitshuffle")],
    "blosc lz4, small blocks": [BloscCodec(cname="lz4", clevel=9, shuffle="noshuffle", blocksize=256)],
    "blosc lz4hc": [BloscCodec(cname="lz4hc", clevel=9)],
    "blosc zstd": [BloscCodec(cname="zstd", clevel=3)],
    "blosc zlib": [BloscCodec(cname="zlib", clevel=6)],
    "blosc blosclz": [BloscCodec(cname="blosclz", clevel=5)],
    "blosc, level 0": [BloscCodec(cname="lz4", clevel=0)],
    "blosc lz4 and crc32c": [BloscCodec(cname="lz4"), Crc32cCodec()],
    "zstd and crc32c": [ZstdCodec(), Crc32cCodec()],
    "crc32c alone": [Crc32cCodec()],
}
UNKNOWN: dict[str, list[Any]] = {
    "gzip": [GzipCodec()],
    "two compressors": [ZstdCodec(), BloscCodec(cname="lz4")],
    "crc32c before the compressor": [Crc32cCodec(), ZstdCodec()],
}


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "MAX_CHUNK_ROWS", 4)
    monkeypatch.setattr(shards, "CHUNKS_PER_SHARD", 2)
    monkeypatch.setattr(shards, "IMAGE_ROW_BYTES", 100)


def made_by_zarr(folder: Path, codecs: list[Any], dtype: str = "uint16", **options: Any) -> np.ndarray:
    """Write an array of ROWS rows of (6, 3) in chunks of 4 and return it; some values repeat, so it compresses."""
    truth = values(np.random.default_rng(0), dtype, (ROWS, 6, 3))
    truth[:, 2:] = truth[:1, 2:]
    options = {"chunks": (4, 6, 3), **options}
    gap = options.pop("gap", slice(0))
    truth[gap] = options.get("fill_value", 0)
    array = zarr.create_array(folder, shape=truth.shape, dtype=dtype, compressors=codecs, **options)
    array[:] = truth
    return truth


def assert_reads(folder: Path, truth: np.ndarray) -> ShardedArray:
    """Compare with zarr's reader, and with what was written, on windows, strides and single rows."""
    ours, theirs = ShardedArray(folder), zarr.open_array(folder, mode="r")
    for start, stop in [(0, ROWS), (3, 30), (4, 8), (5, 6), (15, 17), (44, 45), (7, 7)]:
        result = ours.read(start, stop)
        assert result.dtype == truth.dtype and result.flags.writeable
        np.testing.assert_array_equal(result, truth[start:stop])
        np.testing.assert_array_equal(result, theirs[start:stop])
        np.testing.assert_array_equal(ours.read(start, stop, 3), truth[start:stop:3])
    scattered = [44, 0, 17, 0, 5, -1, 18]
    np.testing.assert_array_equal(ours.take(scattered), truth[scattered])
    np.testing.assert_array_equal(ours[::-1], truth[::-1])
    for row in range(ROWS):  # one by one, as policies read
        np.testing.assert_array_equal(ours[row], truth[row])
    return ours


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("place", ["end", "start", "unsharded"])
def test_every_codec_is_read_as_zarr_reads_it(tmp_path: Path, name: str, place: str) -> None:
    options = {} if place == "unsharded" else {"shards": {"shape": (16, 6, 3), "index_location": place}}
    truth = made_by_zarr(tmp_path / "a", FOREIGN[name], **options)
    ours = assert_reads(tmp_path / "a", truth)
    assert ours.layout is not None and isinstance(ours._shard(0, ours.layout), EncodedShard), "must go directly"


@pytest.mark.parametrize("gap", [slice(4, 8), slice(16, 32), slice(40, 45), slice(0, 45)], ids=str)
@pytest.mark.parametrize("fill", [0, 7])
@pytest.mark.parametrize("shard_rows", [None, 4, 16, 64])
def test_what_zarr_leaves_out_is_the_fill_value(tmp_path: Path, gap: slice, fill: int, shard_rows: int | None) -> None:
    options = {"shards": (shard_rows, 6, 3)} if shard_rows else {}
    truth = made_by_zarr(tmp_path / "a", [BloscCodec(cname="lz4")], gap=gap, fill_value=fill, **options)
    assert assert_reads(tmp_path / "a", truth).layout is not None


@pytest.mark.parametrize("fill", [float("nan"), float("inf"), -1.5])
def test_fill_values_that_json_does_not_know(tmp_path: Path, fill: float) -> None:
    truth = made_by_zarr(tmp_path / "a", [ZstdCodec()], "float32", gap=slice(8, 24), fill_value=fill, shards=(16, 6, 3))
    assert_reads(tmp_path / "a", truth)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chunk_rows", [1, 3, 16, 64])
def test_every_dtype_and_chunk(tmp_path: Path, dtype: str, chunk_rows: int) -> None:
    truth = made_by_zarr(
        tmp_path / "a", [BloscCodec(cname="zstd")], dtype, chunks=(chunk_rows, 6, 3), shards=(chunk_rows * 2, 6, 3)
    )
    assert_reads(tmp_path / "a", truth)


@pytest.mark.parametrize("name", UNKNOWN)
def test_the_rest_goes_through_zarr(tmp_path: Path, name: str) -> None:
    truth = made_by_zarr(tmp_path / "a", UNKNOWN[name], shards=(16, 6, 3))
    assert assert_reads(tmp_path / "a", truth).layout is None


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("dtype", ["bool", "uint8", "uint16", "float64"])
@pytest.mark.parametrize("codec", COMPRESSED)
@pytest.mark.parametrize("row_shape", [(), (8, 8, 3)])
def test_our_metadata_is_what_zarr_itself_writes(
    tmp_path: Path, dtype: str, codec: str, row_shape: tuple[int, ...]
) -> None:
    ours = array_metadata(dtype, row_shape, codec=codec)
    layout = parse_layout(ours)
    assert layout is not None and layout.gapless and not layout.in_place
    options = dict(layout.codec.options)
    theirs = ZstdCodec(**options) if layout.codec.compressor == "zstd" else BloscCodec(**options)
    zarr.create_array(
        tmp_path / "a",
        shape=(0, *row_shape),
        dtype=dtype,
        chunks=(layout.chunk_rows, *row_shape),
        shards={"shape": (layout.shard_rows, *row_shape), "index_location": "start"},
        compressors=[theirs, Crc32cCodec()],
        filters=None,
    )
    assert ours == read_json(tmp_path / "a" / "zarr.json")


def written(folder: Path, truth: np.ndarray, codec: str) -> ShardedArray:
    """Write `truth` uncompressed with zarr and from there with our writer."""
    zarr.create_array(folder / "source", data=truth, compressors=None)
    metadata = array_metadata(truth.dtype.name, truth.shape[1:], codec=codec)
    metadata["shape"][0] = len(truth)
    layout = parse_layout(metadata)
    assert layout is not None
    told: list[int] = []
    write_array(ShardedArray(folder / "source"), folder / "a", layout, told.append)
    assert sum(told) == truth.nbytes
    (folder / "a").mkdir(exist_ok=True)  # nothing is written for no rows
    write_json(folder / "a" / "zarr.json", metadata)
    return ShardedArray(folder / "a")


@pytest.mark.usefixtures("small_shards")
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    codec=st.sampled_from(CODECS),
    dtype=st.sampled_from(DTYPES),
    row_shape=st.sampled_from([(), (3,), (2, 2, 3), (8, 8, 3)]),
    rows=st.integers(1, 40),
    data=st.data(),
)
def test_what_we_write_is_read_by_zarr_and_by_us(
    tmp_path_factory: pytest.TempPathFactory, codec: str, dtype: str, row_shape: tuple[int, ...], rows: int, data: Any
) -> None:
    truth = values(np.random.default_rng(rows), dtype, (rows, *row_shape))
    ours = written(tmp_path_factory.mktemp("s"), truth, codec)
    np.testing.assert_array_equal(zarr.open_array(ours.folder, mode="r")[:], truth)
    start = data.draw(st.integers(0, rows))
    stop = data.draw(st.integers(start, rows))
    step = data.draw(st.integers(1, 7))
    indices = data.draw(st.lists(st.integers(-rows, rows - 1), max_size=9))
    np.testing.assert_array_equal(ours.read(start, stop), truth[start:stop])
    np.testing.assert_array_equal(ours.read(start, stop, step), truth[start:stop:step])
    np.testing.assert_array_equal(ours.take(indices), truth[indices] if indices else truth[:0])


# Damage


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("codec", COMPRESSED)
def test_every_flipped_byte_is_noticed(tmp_path: Path, codec: str) -> None:
    """Anywhere in the file: in the index, or in the chunk that is read. Other shards stay readable."""
    truth = values(np.random.default_rng(0), "uint8", (12, 8, 8, 3))
    truth[:, 4:] = 9
    shard = written(tmp_path, truth, codec).folder / "c" / "0" / "0" / "0" / "0"
    whole = shard.read_bytes()
    for at in range(0, len(whole), 7):
        shard.write_bytes(whole[:at] + bytes([whole[at] ^ 0x20]) + whole[at + 1 :])
        array = ShardedArray(tmp_path / "a")
        with pytest.raises(ValueError, match=r"c/0/0/0/0 .*(copy it again|copy the store again)"):
            array.read(0, 8)
        np.testing.assert_array_equal(array.read(8, 12), truth[8:12])


@pytest.mark.parametrize("name", ["zarr's default", "zstd with a checksum of its own", "blosc lz4", "blosc zstd"])
def test_damage_in_what_others_wrote_never_reads_outside(tmp_path: Path, name: str) -> None:
    """Without a crc32c not every flip can be noticed; but each one ends in numbers or in the error, not in a crash."""
    truth = made_by_zarr(tmp_path / "a", FOREIGN[name], shards=(64, 6, 3))
    shard = tmp_path / "a" / "c" / "0" / "0" / "0"
    whole, noticed = shard.read_bytes(), 0
    index_nbytes = 16 * 16 + 4
    flips = list(itertools.product(range(0, len(whole) - index_nbytes, 3), (0x01, 0x80)))
    for at, flip in flips:
        shard.write_bytes(whole[:at] + bytes([whole[at] ^ flip]) + whole[at + 1 :])
        try:
            assert ShardedArray(tmp_path / "a").read(0, ROWS).shape == truth.shape
        except ValueError as error:
            assert "c/0/0/0 is damaged: chunk" in str(error)
            noticed += 1
    assert noticed > len(flips) // 10


@pytest.mark.usefixtures("small_shards")
def test_an_incomplete_copy_is_not_read_as_zeros(tmp_path: Path) -> None:
    truth = values(np.random.default_rng(0), "uint8", (20, 8, 8, 3))
    folder = written(tmp_path, truth, "blosc-lz4").folder
    shard = folder / "c" / "1" / "0" / "0" / "0"
    whole = shard.read_bytes()
    for kept, message in ((len(whole) - 1, "ends at byte"), (30, "too short"), (0, "is empty")):
        shard.write_bytes(whole[:kept])
        with pytest.raises(ValueError, match=message):
            ShardedArray(folder).read(8, 16)
    shard.unlink()
    with pytest.raises(ValueError, match=r"c/1/0/0/0 is missing: the store is an incomplete copy"):
        ShardedArray(folder).read(8, 16)
    np.testing.assert_array_equal(ShardedArray(folder).read(0, 8), truth[:8])


# Stores


def without_lock(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: data for name, data in files.items() if name != ".lock"}


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("codec", COMPRESSED)
def test_a_compressed_copy_and_back(tmp_path: Path, codec: str) -> None:
    store = collect(tmp_path / "s", 9)
    store.close()
    compress_store(tmp_path / "s", tmp_path / "small", codec=codec, chunk_rows=3)
    small = EpisodeStore.open(tmp_path / "small")
    assert (small.compression, store.compression) == (codec, None)
    assert small.content_hash() == store.content_hash()
    assert small.meta.keys() == store.meta.keys() and (small.env, small.fps) == (store.env, store.fps)
    plain = zarr.open_group(tmp_path / "small", mode="r")
    for key in store.features:
        np.testing.assert_array_equal(plain[f"data/{key}"][:], store.read(key, 0, store.steps))
        alone = zarr.open_array(tmp_path / "small" / "data" / key, mode="r")
        assert alone.shape[0] == store.steps
    with pytest.raises(ValueError, match=rf"compressed \({codec}\): it can only be read. .*codec='none'"):
        small.append(episode(9), meta(9))
    compress_store(tmp_path / "small", tmp_path / "back", codec="none")
    assert all_files(tmp_path / "back") == without_lock(all_files(tmp_path / "s"))
    again = EpisodeStore.open(tmp_path / "back")
    again.append(episode(9), meta(9))
    collect(tmp_path / "straight", 10)
    assert all_files(tmp_path / "back") == all_files(tmp_path / "straight")


def test_a_store_written_by_zarr_becomes_one_that_grows(tmp_path: Path) -> None:
    store = collect(tmp_path / "s", 4)
    source = zarr.open_group(tmp_path / "s", mode="r")
    copy = zarr.create_group(tmp_path / "copy", attributes=dict(source.attrs))
    for room in ("data", "meta"):
        for key, array in source[room].arrays():
            other = copy.create_array(f"{room}/{key}", shape=array.shape, dtype=array.dtype, compressors=[GzipCodec()])
            other[:] = array[:]
    compress_store(tmp_path / "copy", tmp_path / "ours", codec="none")
    ours = EpisodeStore.open(tmp_path / "ours")
    assert ours.content_hash() == store.content_hash()
    ours.append(episode(4), meta(4))
    assert ours.content_hash() == collect(tmp_path / "straight", 5).content_hash()


def test_a_compressed_frame_store_keeps_its_records_and_rejects(tmp_path: Path) -> None:
    """What lies beside the arrays is copied as committed, and the job that made the store says why it cannot go on."""
    from test_frames import TOYS, ToySource, prepare

    from toto_robot.data.frames import FrameStore

    frames = prepare([*TOYS, ToySource("broken", 9, fails_at=3)], tmp_path / "s")
    with open(tmp_path / "s" / "records.jsonl", "a") as file:
        file.write('{"name": "of a writer that was killed"}\n')
    compress_store(tmp_path / "s", tmp_path / "small", codec="zstd")
    small = FrameStore.open(tmp_path / "small")
    assert small.records == frames.records and small.fingerprint() == frames.fingerprint()
    assert (tmp_path / "small" / "records.jsonl").read_text().count("\n") == len(frames)
    assert "broken" in (tmp_path / "small" / "rejected.json").read_text()
    np.testing.assert_array_equal(small.clip(3, 16, 2), frames.clip(3, 16, 2))
    np.testing.assert_array_equal(small.read([70, 0, 5, 70]), frames.read([70, 0, 5, 70]))
    with pytest.raises(ValueError, match=r"compressed \(zstd\): it can only be read"):
        prepare([*TOYS, ToySource("broken", 9, fails_at=3), ToySource("new", 9)], tmp_path / "small")


def test_images_are_cut_as_asked_and_numbers_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "IMAGE_ROW_BYTES", 8 * 8 * 3)
    collect(tmp_path / "s", 3).close()
    compress_store(tmp_path / "s", tmp_path / "small", chunk_rows=2)
    plain = zarr.open_group(tmp_path / "small", mode="r")
    assert plain["data/observation.images.front"].chunks == (2, 8, 8, 3)
    assert plain["data/action"].chunks == (shards.MAX_CHUNK_ROWS, 2)


def test_copies_that_cannot_be(tmp_path: Path) -> None:
    collect(tmp_path / "s", 2).close()
    with pytest.raises(ValueError, match=r"codec of a store is one of none, .*; got 'lz77'"):
        compress_store(tmp_path / "s", tmp_path / "t", codec="lz77")
    with pytest.raises(ValueError, match="at least one row; got chunk_rows=0"):
        compress_store(tmp_path / "s", tmp_path / "t", chunk_rows=0)
    with pytest.raises(ValueError, match=r"expected a store .* at .*nothing, and there is none"):
        compress_store(tmp_path / "nothing", tmp_path / "t")
    for target in (tmp_path / "s", tmp_path):
        with pytest.raises(ValueError, match="exists already"):
            compress_store(tmp_path / "s", target)
    with pytest.raises(ValueError, match="codec of a store"):
        EpisodeStore.create(tmp_path / "u", features={}, fps=1, env={"env_id": "x"}, compression="lz77")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s"]


def test_a_full_disk_leaves_no_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    collect(tmp_path / "s", 4).close()
    before = all_files(tmp_path / "s")
    full_after(monkeypatch, 30)
    with pytest.raises(OSError, match=r"no space left to write .*t .* is untouched: free some space"):
        compress_store(tmp_path / "s", tmp_path / "t")
    assert all_files(tmp_path) == {f"s/{name}": data for name, data in before.items()}


def full_after(monkeypatch: pytest.MonkeyPatch, writes: int) -> None:
    real, left = os.pwrite, [writes]

    def nearly_full(fd: int, data: Any, offset: int) -> int:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", nearly_full)


# A store that is compressed when it is finished


def collect_compressed(path: Path, wanted: int = 2) -> EpisodeStore:
    """Collect short episodes of one key, over several shards, and finish; going on where it was killed."""
    from test_episodes import ENV, FEATURES

    if path.exists():
        store = EpisodeStore.open(path)
    else:
        features = {"action": FEATURES["action"]}
        store = EpisodeStore.create(path, features=features, fps=5, env=ENV, compression="blosc-lz4")
    for number in range(len(store), wanted):
        store.append({"action": episode(number)["action"]}, {"seed": number})
    store.finish()
    store.close()
    return store


@pytest.mark.usefixtures("small_shards")
def test_finish_compresses_in_place(tmp_path: Path) -> None:
    finished = collect_compressed(tmp_path / "s", 5)
    shards_left = [name for name in all_files(tmp_path / "s") if "/c." in name]
    assert not shards_left and finished.compression == "blosc-lz4"
    for store in (finished, EpisodeStore.open(tmp_path / "s")):
        for number in range(5):
            np.testing.assert_array_equal(store.episode(number)["action"], episode(number)["action"])
        np.testing.assert_array_equal(store.meta["seed"], range(5))
    with pytest.raises(ValueError, match="can only be read"):
        collect_compressed(tmp_path / "s", 6)
    compress_store(tmp_path / "s", tmp_path / "again", codec="blosc-lz4")
    assert all_files(tmp_path / "again") == without_lock(all_files(tmp_path / "s")), "the same layout either way"


def collected(path: Path, monkeypatch: pytest.MonkeyPatch, episodes: int) -> dict[str, bytes]:
    """Collect without finishing; return the files."""
    with monkeypatch.context() as patched:
        patched.setattr(EpisodeStore, "finish", lambda store: None)
        collect_compressed(path, episodes)
    return all_files(path)


@pytest.mark.usefixtures("small_shards")
def test_killed_at_every_touch_of_the_disk_while_finishing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it dies the store opens whole, in one layout or the other, and a rerun gives the same bytes."""
    collect_compressed(tmp_path / "straight")
    expected = all_files(tmp_path / "straight")
    collected(tmp_path / "collected", monkeypatch, 2)
    touch, in_place = 1, []
    while True:
        shutil.rmtree(tmp_path / "killed", ignore_errors=True)
        shutil.copytree(tmp_path / "collected", tmp_path / "killed")
        if not killed_at(touch, lambda: collect_compressed(tmp_path / "killed")):
            break
        store = EpisodeStore.open(tmp_path / "killed")
        for number in range(2):
            np.testing.assert_array_equal(store.episode(number)["action"], episode(number)["action"])
        layout = store._flat.data["action"].layout
        assert layout is not None
        in_place.append(layout.in_place)
        collect_compressed(tmp_path / "killed")
        assert all_files(tmp_path / "killed") == expected, f"killed at touch {touch}"
        touch += 1
    assert len(in_place) > 30 and all(in_place[:-2]), in_place


@pytest.mark.usefixtures("small_shards")
def test_a_killed_finish_does_not_stop_the_store_from_growing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    collected(tmp_path / "s", monkeypatch, 2)
    assert killed_at(20, lambda: collect_compressed(tmp_path / "s"))
    assert [name for name in all_files(tmp_path / "s") if "/c/" in name], "killed too early or too late"
    assert collected(tmp_path / "s", monkeypatch, 3) == collected(tmp_path / "straight", monkeypatch, 3)


@pytest.mark.usefixtures("small_shards")
def test_killed_while_the_uncompressed_shards_are_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    collect_compressed(tmp_path / "straight")
    with monkeypatch.context() as patched:

        def killed(arrays: object) -> None:
            raise KeyboardInterrupt

        patched.setattr("toto_robot.data.flat_store.drop_replaced", killed)
        with pytest.raises(KeyboardInterrupt):
            collect_compressed(tmp_path / "s")
    assert [name for name in all_files(tmp_path / "s") if "/c." in name], "nothing to clean up"
    collect_compressed(tmp_path / "s")
    assert all_files(tmp_path / "s") == all_files(tmp_path / "straight")


@pytest.mark.usefixtures("small_shards")
def test_a_full_disk_while_finishing_leaves_what_was_collected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    collect_compressed(tmp_path / "straight", 3)
    before = collected(tmp_path / "s", monkeypatch, 3)
    for writes in (0, 1, 5, 9):
        with monkeypatch.context() as patched:
            full_after(patched, writes)
            with pytest.raises(OSError, match="3 whole items are safe"):
                EpisodeStore.open(tmp_path / "s").finish()
        assert all_files(tmp_path / "s") == before
    collect_compressed(tmp_path / "s", 3)
    assert all_files(tmp_path / "s") == all_files(tmp_path / "straight")
