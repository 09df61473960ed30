"""Does the episode store give back what was appended, refuse what does not fit, and survive kills and full disks?"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from crash import all_files, killed_at, run_and_kill

from toto_robot.data import shards
from toto_robot.data.episodes import EpisodeStore, FeatureSpec, require_env
from toto_robot.run_folder import read_json, write_json

FEATURES = {
    "observation.state": FeatureSpec("float32", (3,), ("q_rad", "x_m", "y_m")),
    "observation.images.front": FeatureSpec("uint8", (8, 8, 3)),
    "observation.images.wrist": FeatureSpec("uint8", (8, 8, 3)),
    "action": FeatureSpec("float32", (2,)),
    "next.success": FeatureSpec("bool", ()),
    "simulator.state": FeatureSpec("float64", (5,)),
}
ENV = {"env_id": "toto_robot/FrankaPick-v0", "control_rate_hz": 20.0}


def episode(number: int) -> dict[str, np.ndarray]:
    """Make episode `number`, of 5 to 11 steps."""
    rng, steps = np.random.default_rng(number), 5 + number % 7
    return {key: (rng.random((steps, *spec.shape)) * 255).astype(spec.dtype) for key, spec in FEATURES.items()}


def meta(number: int) -> dict[str, bool | int | float]:
    return {"seed": 1000 + number, "success": number % 2 == 0, "noise": 0.25}


def create(path: Path) -> EpisodeStore:
    return EpisodeStore.create(path, features=FEATURES, fps=20.0, env=ENV, provenance={"commit": "abc"})


def collect(path: Path, wanted: int) -> EpisodeStore:
    """Collect as policies do: create or resume, then append what is missing."""
    store = EpisodeStore.open(path) if path.exists() else create(path)
    for number in range(len(store), wanted):
        store.append(episode(number), meta(number))
    return store


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "MAX_CHUNK_ROWS", 4)
    monkeypatch.setattr(shards, "CHUNKS_PER_SHARD", 2)


@pytest.mark.usefixtures("small_shards")
def test_gives_back_what_was_appended(tmp_path: Path) -> None:
    collect(tmp_path / "s", 9).close()
    store = EpisodeStore.open(tmp_path / "s")
    lengths = [5 + number % 7 for number in range(9)]
    assert len(store) == 9 and store.steps == sum(lengths) and store.cameras == ("front", "wrist")
    np.testing.assert_array_equal(store.ends, np.cumsum(lengths))
    np.testing.assert_array_equal(store.meta["length"], lengths)
    assert {key: values.dtype.name for key, values in store.meta.items()} == {
        "length": "int64", "seed": "int64", "success": "bool", "noise": "float64",
    }  # fmt: skip
    assert store.meta["success"].tolist() == [number % 2 == 0 for number in range(9)]
    assert (store.fps, store.env, store.provenance) == (20.0, ENV, {"commit": "abc"})
    assert store.features["observation.state"] == FEATURES["observation.state"]
    for number in range(9):
        got, given = store.episode(number), episode(number)
        for key in FEATURES:
            assert got[key].dtype == given[key].dtype
            np.testing.assert_array_equal(got[key], given[key])
        np.testing.assert_array_equal(got["frame_index"], np.arange(lengths[number]))
        np.testing.assert_array_equal(got["episode_index"], number)
        np.testing.assert_allclose(got["timestamp"], np.arange(lengths[number]) / 20.0)
    with pytest.raises(IndexError):
        store.episode(9)
    with pytest.raises(IndexError):
        store.episode(-1)


@pytest.mark.usefixtures("small_shards")
def test_plain_zarr_sees_the_committed_episodes_at_any_time(tmp_path: Path) -> None:
    store = collect(tmp_path / "s", 3)
    before = zarr.open_group(tmp_path / "s", mode="r")
    collect_more = episode(3)
    store.append(collect_more, meta(3))
    for group, count in ((before, 3), (zarr.open_group(tmp_path / "s", mode="r"), 4)):
        ends = np.asarray(group["meta/episode_ends"])
        assert len(ends) == count
        for key in store.features:
            array = np.asarray(group[f"data/{key}"])
            assert len(array) == ends[-1]
            np.testing.assert_array_equal(array, store.read(key, 0, int(ends[-1])))
    assert zarr.open_array(tmp_path / "s/data/action", mode="r").shape == (store.steps, 2), "also opened on its own"


def test_a_copy_made_with_zarr_and_compressed_reads_the_same(tmp_path: Path) -> None:
    store = collect(tmp_path / "s", 4)
    store.close()
    source = zarr.open_group(tmp_path / "s", mode="r")
    copy = zarr.create_group(tmp_path / "copy", attributes=dict(source.attrs))
    for room in ("data", "meta"):
        for key, array in source[room].arrays():
            compressed = copy.create_array(f"{room}/{key}", shape=array.shape, dtype=array.dtype, compressors="auto")
            compressed[:] = array[:]
    again = EpisodeStore.open(tmp_path / "copy")
    assert again.content_hash() == store.content_hash()
    with pytest.raises(ValueError, match="can only be read"):
        again.append(episode(4), meta(4))


def wrong(**changes: Any) -> dict[str, np.ndarray]:
    return {key: value for key, value in {**episode(0), **changes}.items() if value is not None}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (wrong(action=None), r"episode 2: missing keys \['action'\]"),
        (wrong(extra=np.zeros(5)), r"unknown keys \['extra'\]"),
        (wrong(action=np.zeros((5, 3), np.float32)), r"action of episode 2: expected shape \(5, 2\), got \(5, 3\)"),
        (wrong(action=np.zeros((4, 2), np.float32)), r"action of episode 2: expected shape \(5, 2\), got \(4, 2\)"),
        (wrong(action=np.zeros((5, 2), np.int64)), r"action of episode 2: expected float32, got int64"),
        (wrong(**{"observation.images.front": np.zeros((5, 8, 8, 3))}), r"images.front .* expected uint8, got float64"),
        (wrong(action=np.array([[0, 0]] * 3 + [[0, np.nan]] * 2)), r"action of episode 2 is not finite at step 3"),
        (wrong(action=np.full((5, 2), np.inf, np.float32)), r"action of episode 2 is not finite at step 0"),
        (wrong(action=np.full((5, 2), 1e300)), r"action of episode 2 is not finite at step 0"),  # float64 to float32
        (wrong(episode_index=np.zeros(5, np.int64)), r"episode_index of episode 2 .* leave the key out"),
        ({key: value[:0] for key, value in episode(0).items()}, r"episode 2 has no steps"),
    ],
)
def test_refuses_what_does_not_fit_and_stays_usable(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    store = collect(tmp_path / "s", 2)
    with pytest.raises(ValueError, match=message):
        store.append(changed, meta(2))
    assert len(EpisodeStore.open(tmp_path / "s")) == 2
    collect(tmp_path / "straight", 3)
    store.append(episode(2), meta(2))
    store.close()
    assert all_files(tmp_path / "s") == all_files(tmp_path / "straight"), "the refused one left a trace"


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"seed": 1, "success": True}, r"keys \[length, noise, seed, success\]; got \[length, seed, success\]"),
        ({**meta(2), "task": 1}, r"got \[length, noise, seed, success, task\]"),
        ({**meta(2), "noise": float("nan")}, "'noise' must be"),
        ({**meta(2), "seed": 0.5}, "'seed' is int64"),
        ({**meta(2), "success": 1}, "'success' is bool"),
        ({**meta(2), "length": 8}, "length 8"),
    ],
)
def test_every_episode_has_the_same_numbers(tmp_path: Path, numbers: dict[str, Any], message: str) -> None:
    store = collect(tmp_path / "s", 2)
    with pytest.raises(ValueError, match=message):
        store.append(episode(2), numbers)
    collect(tmp_path / "straight", 3)
    store.append(episode(2), {**meta(2), "noise": np.float32(0.25), "seed": np.int32(1002), "success": np.bool_(True)})
    assert all_files(tmp_path / "s") == all_files(tmp_path / "straight")


def test_a_first_episode_with_a_wrong_number_leaves_nothing(tmp_path: Path) -> None:
    store = create(tmp_path / "s")
    with pytest.raises(ValueError, match="'task' must be a truth value, an integer or a finite number; got 'pick'"):
        store.append(episode(0), {**meta(0), "task": "pick"})
    collect(tmp_path / "straight", 1)
    store.append(episode(0), meta(0))
    assert all_files(tmp_path / "s") == all_files(tmp_path / "straight")


def test_float64_and_python_numbers_are_fitted(tmp_path: Path) -> None:
    store = create(tmp_path / "s")
    given = episode(0)
    store.append({**given, "action": given["action"].astype(np.float64)}, meta(0))
    np.testing.assert_array_equal(store.read("action", 0, 5), given["action"])


def test_only_a_store_of_this_version_opens(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing, which does not exist; make one with .toto_robot collect"):
        EpisodeStore.open(tmp_path / "nothing")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="which is not one"):
        EpisodeStore.open(tmp_path / "folder")
    zarr.create_group(tmp_path / "other")
    with pytest.raises(ValueError, match="which is not one"):
        EpisodeStore.open(tmp_path / "other")
    collect(tmp_path / "s", 1).close()
    root = read_json(tmp_path / "s" / "zarr.json")
    for key, value, message in (("schema_version", 2, "version 2, .* reads version 1"), ("kind", "tokens", "tokens")):
        changed = {**root["attributes"], "toto_robot": {**root["attributes"]["toto_robot"], key: value}}
        write_json(tmp_path / "s" / "zarr.json", {**root, "attributes": changed})
        with pytest.raises(ValueError, match=message):
            EpisodeStore.open(tmp_path / "s")


def test_create_does_not_overwrite(tmp_path: Path) -> None:
    collect(tmp_path / "s", 1)
    with pytest.raises(ValueError, match="exists already"):
        create(tmp_path / "s")
    assert len(EpisodeStore.open(tmp_path / "s")) == 1


def test_demonstrations_of_another_env_are_refused(tmp_path: Path) -> None:
    store = create(tmp_path / "s")
    require_env(store, "toto_robot/FrankaPick-v0")
    with pytest.raises(ValueError, match="of 'toto_robot/FrankaPick-v0', the policy is for 'x/Cabinet-v0'"):
        require_env(store, "x/Cabinet-v0")
    with pytest.raises(ValueError, match="env_id"):
        EpisodeStore.create(tmp_path / "t", features=FEATURES, fps=20.0, env={})


def collect_few(path: Path) -> EpisodeStore:
    """Collect two short episodes of one key, over two shards."""
    features = {"action": FEATURES["action"]}
    store = EpisodeStore.open(path) if path.exists() else EpisodeStore.create(path, features=features, fps=5, env=ENV)
    for number in range(len(store), 2):
        store.append({"action": episode(number)["action"]}, {"seed": number})
    store.close()
    return store


@pytest.mark.usefixtures("small_shards")
def test_killed_at_every_touch_of_the_disk_and_resumed(tmp_path: Path) -> None:
    """Wherever the collector dies, the store opens with whole episodes and a resumed run gives the same bytes."""
    collect_few(tmp_path / "straight")
    expected = all_files(tmp_path / "straight")
    touch = 1
    while killed_at(touch, lambda: collect_few(tmp_path / "killed")):
        for number in range(len(EpisodeStore.open(tmp_path / "killed")) if (tmp_path / "killed").exists() else 0):
            got = EpisodeStore.open(tmp_path / "killed").episode(number)["action"]
            np.testing.assert_array_equal(got, episode(number)["action"])
        if touch % 3 == 0:  # die once more, while cleaning up after the first death
            killed_at(5, lambda: collect_few(tmp_path / "killed"))
        collect_few(tmp_path / "killed")
        assert all_files(tmp_path / "killed") == expected, f"killed at touch {touch}"
        shutil.rmtree(tmp_path / "killed")
        touch += 1
    assert touch > 80, "hardly anything was tried"


def python(script: str, path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=False)


def test_reads_on_after_a_kill_while_cleaning_up(tmp_path: Path) -> None:
    """A writer that dies while it zeroes leftovers leaves a short shard; appending to it afterwards loses nothing."""
    collect(tmp_path / "s", 1).close()
    shard = tmp_path / "s" / "data" / "action" / "c.0.0"
    rows_end = shard.stat().st_size - (256 * shards.MAX_CHUNK_ROWS - 5) * 8
    os.truncate(shard, rows_end)
    store = EpisodeStore.open(tmp_path / "s")
    np.testing.assert_array_equal(store.episode(0)["action"], episode(0)["action"])
    store.append(episode(1), meta(1))
    np.testing.assert_array_equal(store.episode(1)["action"], episode(1)["action"])
    collect(tmp_path / "straight", 2)
    assert all_files(tmp_path / "s") == all_files(tmp_path / "straight")


COLLECTOR = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_episodes import create, episode, meta
from toto_robot.data.episodes import EpisodeStore
path = Path(sys.argv[1])
store = EpisodeStore.open(path) if path.exists() else create(path)
for number in range(len(store), 40):
    store.append(episode(number), meta(number))
    print(number, flush=True)
"""


def test_kill_9_in_mid_collection_and_resume(tmp_path: Path) -> None:
    script = COLLECTOR.format(tests=str(Path(__file__).parent))
    kills = [run_and_kill(script, [str(tmp_path / "killed")], after_lines) for after_lines in (3, 15)]
    assert all(kills)
    assert len(EpisodeStore.open(tmp_path / "killed")) < 40
    assert not run_and_kill(script, [str(tmp_path / "killed")], 1000)
    collect(tmp_path / "straight", 40).close()
    assert all_files(tmp_path / "killed") == all_files(tmp_path / "straight")


def test_a_full_disk_is_told_and_the_store_stays_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = collect(tmp_path / "s", 2)
    real, left = os.pwrite, [300]

    def nearly_full(fd: int, data: Any, offset: int) -> int:
        if not left[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = min(left[0], len(data))
        left[0] -= taken
        return real(fd, data[:taken], offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", nearly_full)
        with pytest.raises(OSError, match=r"no space left .*2 whole items are safe: free some space") as told:
            store.append(episode(6), meta(6))  # longer than the one that comes in its place
        assert told.value.errno == errno.ENOSPC
    assert len(EpisodeStore.open(tmp_path / "s")) == 2
    store.append(episode(2), meta(2))  # some space was freed
    collect(tmp_path / "straight", 3)
    assert all_files(tmp_path / "s") == all_files(tmp_path / "straight")


LIMITED = """
import resource, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_episodes import collect
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
try:
    collect(Path(sys.argv[1]), 40)
except OSError as error:
    print(error)
    sys.exit(3)
"""


def test_the_kernel_refuses_to_write(tmp_path: Path) -> None:
    """The same with a limit that the kernel enforces: the first shard of images is larger."""
    create(tmp_path / "s").close()
    script = LIMITED.format(tests=str(Path(__file__).parent))
    run = python(script, tmp_path / "s")
    assert run.returncode == 3, run.stderr
    assert "0 whole items are safe" in run.stdout
    collect(tmp_path / "s", 2).close()
    collect(tmp_path / "straight", 2).close()
    assert all_files(tmp_path / "s") == all_files(tmp_path / "straight")


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    first = collect(tmp_path / "s", 1)
    second = EpisodeStore.open(tmp_path / "s")
    first.append(episode(1), meta(1))
    with pytest.raises(ValueError, match="changed by another writer since it was opened"):
        second.append(episode(1), meta(1))
    script = COLLECTOR.format(tests=str(Path(__file__).parent))
    run = python(script, tmp_path / "s")
    assert "another process is writing to" in run.stderr
    first.close()
    run = python(script, tmp_path / "s")
    assert run.returncode == 0 and len(EpisodeStore.open(tmp_path / "s")) == 40


def test_a_reader_keeps_what_was_committed_when_it_opened(tmp_path: Path) -> None:
    store = collect(tmp_path / "s", 2)
    reader = EpisodeStore.open(tmp_path / "s")
    hashed = reader.content_hash()
    store.append(episode(2), meta(2))
    assert len(reader) == 2 and reader.content_hash() == hashed != store.content_hash()
    with pytest.raises(IndexError):
        reader.read("action", 0, reader.steps + 1)


def test_the_hash_is_of_the_content_only(tmp_path: Path) -> None:
    one = collect(tmp_path / "one", 3)
    other = EpisodeStore.create(tmp_path / "two", features=FEATURES, fps=20.0, env=ENV, provenance={"commit": "xyz"})
    for number in range(3):
        other.append(episode(number), meta(number))
    assert one.content_hash() == other.content_hash()
    changed = collect(tmp_path / "three", 2)
    changed.append({**episode(2), "next.success": ~episode(2)["next.success"]}, meta(2))
    assert changed.content_hash() != one.content_hash()
    assert one.content_hash(3) == one.content_hash()
    assert one.content_hash(2) == changed.content_hash(2) == collect(tmp_path / "four", 2).content_hash()
    with pytest.raises(IndexError):
        one.content_hash(4)


def test_imports_without_torch() -> None:
    """The robot's computer records episodes and has no torch."""
    code = "import sys, toto_robot.data.episodes; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
