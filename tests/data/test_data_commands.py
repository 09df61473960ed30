"""Do `data info | check | view | convert` tell the truth about a real recording, and find what is planted in it?"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import av
import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr
from PIL import Image
from recorded import make_store

from policies.collect import CollectConfig, collect_episodes
from toto_robot import cli
from toto_robot.data import check as checks
from toto_robot.data import convert as conversion
from toto_robot.data.commands import (
    CheckConfig,
    ConvertConfig,
    InfoConfig,
    ViewConfig,
    check,
    convert_data,
    info,
    view,
)
from toto_robot.data.episodes import EpisodeStore
from toto_robot.data.finding import ERROR, WARNING, Finding
from toto_robot.data.frames import prepare_frames
from toto_robot.data.recording import open_recording
from toto_robot.data.sources import find_sources
from toto_robot.run_folder import read_json, write_json

pytestmark = pytest.mark.render
PX = 32
FRONT = "observation.images.front"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two real demonstrations."""
    path = tmp_path_factory.mktemp("recorded") / "episodes"
    collect_episodes(CollectConfig(episodes=2, image_size=PX, workers=1), path)
    return path


def duplicate(store: Path, path: Path) -> Path:
    """Copy a store with the holes in its files, which Python's own copy fills with a hundred megabytes of zeros."""
    subprocess.run(["cp", "-r", "--sparse=always", str(store), str(path)], check=True)
    return path


@pytest.fixture
def copy(recorded: Path, tmp_path: Path) -> Path:
    """A copy of them, to be damaged."""
    return duplicate(recorded, tmp_path / "episodes")


def findings(path: Path, *, environment: bool = False, images: bool = True) -> list[Finding]:
    return list(checks.check(path, checks.Options(environment=environment, images=images, progress=False)))


def rewrite(path: Path, key: str, change: Callable[[np.ndarray], np.ndarray], room: str = "data") -> None:
    """Change the rows of an array behind the store's back, through zarr."""
    array = zarr.open_array(path / room / key, mode="r+")
    array[:] = change(np.asarray(array[:]))


def row_of(path: Path, episode: int, step: int) -> int:
    return EpisodeStore.open(path).bounds(episode)[0] + step


# --------------------------------------------------------------------------------------------------------------- check


def test_nothing_is_wrong_with_a_real_recording(recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert findings(recorded, environment=True) == []
    assert check(CheckConfig(path=str(recorded)), tmp_path / "run") == 0
    assert "0 errors, 0 warnings" in capsys.readouterr().out
    assert read_json(tmp_path / "run" / "findings.json") == []


@pytest.mark.parametrize(("format", "name"), [("lerobot", "lerobot"), ("robomimic", "a.hdf5")])
def test_nor_with_its_exports(recorded: Path, tmp_path: Path, format: str, name: str) -> None:
    conversion.convert(open_recording(recorded), tmp_path / name, format, conversion.Options(), progress=False)
    assert findings(tmp_path / name, environment=True) == []


def at(array: np.ndarray, place: tuple[int, ...], value: float) -> np.ndarray:
    array[place] = value
    return array


# key, what to do to the array around row (episode 1, step 7), severity, step that must be named, words.
VALUES = {
    "nan": ("observation.state", lambda a, r: at(a, (r, 3), np.nan), ERROR, 7, "expected finite numbers, got nan"),
    "infinite": ("action", lambda a, r: at(a, (r, 0), np.inf), ERROR, 7, "expected finite numbers, got inf"),
    "lost frame": ("frame_index", lambda a, r: np.r_[a[:r], a[r:] + 1], ERROR, 7, "expected 7, got 8: a gap"),
    "other episode": ("episode_index", lambda a, r: at(a, (r,), 5), ERROR, 7, "expected 1, got 5"),
    "late": ("timestamp", lambda a, r: np.r_[a[:r], a[r:] + 0.05], ERROR, 7, "expected 0.3500 s at 20 Hz, got 0.40"),
    "milliseconds": ("timestamp", lambda a, r: a * 1000, ERROR, 1, "expected 0.0500 s"),
    "action outside": ("action", lambda a, r: at(a, (r, 2), 1.5), ERROR, 7, "expected dz in -1.00001..1.00001"),
    "executed outside": ("action.executed", lambda a, r: at(a, (r, 6), -3), ERROR, 7, "expected gripper in"),
    "millimetres": ("observation.state", lambda a, r: a * np.r_[[1] * 18, 1e3, [1] * 8], ERROR, 0, "millimetres?"),
    "degrees": ("observation.state", lambda a, r: a * np.where(np.arange(27) < 7, 57.3, 1), ERROR, 0, "not scaled"),
    "black": (FRONT, lambda a, r: at(a, (r,), 0), ERROR, 7, "got a black frame (1 of"),
    "one colour": (FRONT, lambda a, r: at(a, (r,), 90), ERROR, 7, "got one colour everywhere (1 of"),
    "0..1": (FRONT, lambda a, r: (a > 100).astype(np.uint8), ERROR, 0, "expected values 0..255, got 0..1"),
    "frozen camera": (FRONT, lambda a, r: np.repeat(a[r : r + 1], len(a), 0), WARNING, 1, "got the same picture"),
    "frozen arm": ("observation.state", lambda a, r: np.repeat(a[:1], len(a), 0), WARNING, 0, "expected values that"),
    "no success": ("next.success", lambda a, r: a & False, ERROR, None, "expected next.success to be True"),
}  # fmt: skip


@pytest.mark.parametrize("fault", VALUES)
def test_planted_values_are_found(copy: Path, fault: str) -> None:
    key, change, severity, step, words = VALUES[fault]
    row = row_of(copy, 1, 7)
    rewrite(copy, key, lambda array: change(array, row))
    found = [finding for finding in findings(copy) if finding.key == key]
    here = [finding for finding in found if finding.episode == 1]
    assert here, found
    assert here[0].severity == severity and words in here[0].what
    assert step is None or here[0].step == step
    line = str(here[0])
    assert line.startswith(f"{severity:<7} episode 1 step") and f" {key}: expected" in line and "\n" not in line


def test_planted_meta_is_found(copy: Path) -> None:
    rewrite(copy, "length", lambda array: array + np.array([0, 3]), room="meta")
    rewrite(copy, "seed", lambda array: array * 0, room="meta")
    rewrite(copy, "noise", lambda array: array * np.nan, room="meta")
    found = {finding.key: finding for finding in findings(copy)}
    assert found["length"].episode == 1 and "steps that meta says" in found["length"].what
    assert found["seed"].severity == WARNING and "0 again" in found["seed"].what
    assert found["noise"].severity == ERROR and "finite" in found["noise"].what


def test_float_images_are_found(recorded: Path, copy: Path) -> None:
    store = EpisodeStore.open(recorded)
    features = {
        key: spec for key, spec in store.features.items() if key not in ("timestamp", "frame_index", "episode_index")
    }
    features[FRONT] = type(features[FRONT])("float32", features[FRONT].shape)
    other = EpisodeStore.create(copy.with_name("float"), features=features, fps=store.fps, env=store.env)
    arrays = store.episode(0)
    arrays[FRONT] = arrays[FRONT].astype(np.float32) / 255
    other.append({key: arrays[key] for key in features}, {"seed": 0})
    other.close()
    assert any(f.key == FRONT and f.severity == ERROR and "expected uint8" in f.what for f in findings(other.path))


def test_the_environment_tells_what_numbers_cannot(copy: Path) -> None:
    """Pictures upside down or in BGR, and an angle in degrees that is small enough for radians: all plausible alone."""
    assert findings(copy, environment=True) == []
    rewrite(copy, FRONT, lambda array: array[:, ::-1])
    rewrite(copy, "observation.images.wrist", lambda array: array[..., ::-1])
    names = EpisodeStore.open(copy).env["proprio_names"]
    rewrite(copy, "observation.state", lambda array: array * np.where(np.arange(27) == names.index("hand_z"), 1.02, 1))
    assert findings(copy) == []
    found = {finding.key: finding for finding in findings(copy, environment=True)}
    assert "upside down" in found[FRONT].what and found[FRONT].severity == ERROR
    assert "red and blue exchanged" in found["observation.images.wrist"].what
    assert "expected hand_z" in found["observation.state"].what
    rewrite(copy, "observation.state", lambda array: array * 180 / np.pi)
    assert any("degrees for radians?" in finding.what for finding in findings(copy, environment=True))


def change_env(path: Path, **changes: object) -> None:
    root = read_json(path / "zarr.json")
    root["attributes"]["env"] |= changes
    write_json(path / "zarr.json", root)


def test_another_scene_is_an_error_and_an_unknown_environment_a_warning(copy: Path) -> None:
    change_env(copy, scene_hash="feedfeedfeedfeed")
    (finding,) = findings(copy, environment=True)
    assert (finding.severity, finding.key) == (ERROR, "scene_hash") and "expected feedfeedfeedfeed" in finding.what
    change_env(copy, env_id="toto_robot/Juggling-v0")
    (finding,) = findings(copy, environment=True)
    assert (finding.severity, finding.key) == (WARNING, "env") and "Juggling" in finding.what
    assert findings(copy, environment=False) == []


def shard_of(path: Path, key: str) -> Path:
    return max(
        (file for file in (path / "data" / key).rglob("*") if file.name != "zarr.json"), key=lambda f: f.stat().st_size
    )


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda shard: shard.unlink(), "missing"),
        (lambda shard: os.truncate(shard, shard.stat().st_size // 4096), ""),
        (lambda shard: shard.write_bytes(b"\xff" * 16 + shard.read_bytes()[16:]), "checksum"),
    ],
    ids=["missing", "cut", "index"],
)
def test_damaged_shards_are_found(copy: Path, damage: Callable[[Path], None], words: str) -> None:
    damage(shard_of(copy, "action"))
    found = [finding for finding in findings(copy) if finding.key == "action"]
    assert {finding.episode for finding in found} == {0, 1} and all(finding.severity == ERROR for finding in found)
    assert words in found[0].what


def test_what_is_no_data_set_is_one_finding(tmp_path: Path) -> None:
    (finding,) = findings(tmp_path / "nothing")
    assert finding.severity == ERROR and "does not exist" in finding.what


def test_faults_in_other_formats_are_found(recorded: Path, tmp_path: Path) -> None:
    recording = open_recording(recorded)
    conversion.convert(recording, tmp_path / "a.hdf5", "robomimic", conversion.Options(), progress=False)
    conversion.convert(recording, tmp_path / "lerobot", "lerobot", conversion.Options(), progress=False)
    with h5py.File(tmp_path / "a.hdf5", "a") as file:
        file["data/demo_1/actions"][7, 2] = np.nan
        file["data/demo_0/obs/front_image"][3] = 0
        del file["data/demo_1/rewards"]
    found = {(finding.episode, finding.key): finding for finding in findings(tmp_path / "a.hdf5")}
    assert found[(1, "action")].step == 7 and found[(0, FRONT)].step == 3
    assert "is missing" in found[(1, "next.reward")].what
    file = tmp_path / "lerobot" / "data" / "chunk-000" / "file-000.parquet"
    table = pq.read_table(file)
    frames = table.column("frame_index").to_numpy().copy()
    frames[recording.lengths[0] + 7 :] += 1
    at_key = table.column_names.index("frame_index")
    pq.write_table(table.set_column(at_key, "frame_index", [frames]), file)
    found = {(finding.episode, finding.key): finding for finding in findings(tmp_path / "lerobot")}
    assert found[(1, "frame_index")].step == 7


def test_frame_stores(recorded: Path, tmp_path: Path) -> None:
    frames = prepare_frames(find_sources(recorded), tmp_path / "frames", 16, progress=False)
    assert findings(frames.path) == []


# ---------------------------------------------------------------------------------------------------------------- info


def test_info_tells_what_is_there(recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert info(InfoConfig(path=str(recorded), json=True), tmp_path / "run") == 0
    about = json.loads(capsys.readouterr().out)
    store = EpisodeStore.open(recorded)
    assert (about["episodes"], about["steps"], about["fps"]) == (2, store.steps, 20.0)
    assert about["hours"] == pytest.approx(store.steps / 20 / 3600, abs=1e-4)
    assert about["success"] == {"successes": 2, "episodes": 2}
    assert about["scene_hash"] == store.env["scene_hash"] and about["provenance"]["collect"]["image_size"] == PX
    actions = store.read("action", 0, store.steps)
    elements = about["features"]["action"]["elements"]
    assert [one["name"] for one in elements] == store.env["action_names"]
    np.testing.assert_allclose([one["max"] for one in elements], actions.max(0))
    assert about["features"][FRONT] == {"dtype": "uint8", "shape": [PX, PX, 3]}
    assert 0 < about["size_bytes"] < 20 * 2**20
    assert info(InfoConfig(path=str(recorded.parent)), tmp_path / "run2") == 0, "a folder with one store in it"
    shown = capsys.readouterr().out
    assert "2 of 2 that were kept" in shown and "hand_z [m]" in shown and "x 0.02 m" in shown


def test_info_of_every_kind(recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    recording = open_recording(recorded)
    conversion.convert(recording, tmp_path / "a.hdf5", "robomimic", conversion.Options(), progress=False)
    conversion.convert(recording, tmp_path / "lerobot", "lerobot", conversion.Options(), progress=False)
    prepare_frames(find_sources(recorded), tmp_path / "frames", 16, progress=False)
    for name, kind in (("a.hdf5", "robomimic file"), ("lerobot", "LeRobot dataset"), ("frames", "frames store")):
        assert info(InfoConfig(path=str(tmp_path / name)), tmp_path / "run") == 0
        assert kind in capsys.readouterr().out
        assert read_json(tmp_path / "run" / "info.json")["kind"] == kind
    found = read_json(tmp_path / "run" / "info.json")
    assert found["clips"] == 4
    assert found["sources"] == {recorded.name: {"kind": "video", "clips": 4, "frames": found["frames"]}}


# ---------------------------------------------------------------------------------------------------------------- view


def test_view_shows_the_stored_pictures(recorded: Path, tmp_path: Path) -> None:
    config = ViewConfig(path=str(recorded), sheet_moments=4, min_side_px=64)
    assert view(config, tmp_path) == 0
    sheet = np.asarray(Image.open(tmp_path / "contact_sheet.png"))
    assert sheet.shape == (2 * (14 + 2 * 64), 4 * 64, 3)
    store = EpisodeStore.open(recorded)
    start, stop = store.bounds(1)
    last = store.read("observation.images.wrist", stop - 1, stop)[0]
    np.testing.assert_array_equal(sheet[-64::2, -64::2], last)  # the last moment of the last episode
    with av.open(str(tmp_path / "episodes.mp4")) as film:
        frames = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
        assert film.streams.video[0].average_rate == 20
    assert len(frames) == store.steps and frames[0].shape == (14 + 64, 128, 3)
    difference = np.abs(
        frames[start][14::2, 64::2].astype(int) - store.read("observation.images.wrist", start, start + 1)[0]
    )
    assert difference.mean() < 12, "the first frame of the second episode"


def test_view_refuses_what_it_cannot_show(recorded: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no camera top; it has front, wrist"):
        view(ViewConfig(path=str(recorded), cameras=("top",)), tmp_path)
    with pytest.raises(ValueError, match="has episodes 0 to 1; got 2"):
        view(ViewConfig(path=str(recorded), episodes=(2,)), tmp_path)


# ------------------------------------------------------------------------------------------------------------- convert


def test_convert_keeps_what_belongs_to_a_real_recording(recorded: Path, tmp_path: Path) -> None:
    for name, format in (("a", "lerobot"), ("b.hdf5", "robomimic")):
        config = ConvertConfig(source=str(recorded), target=str(tmp_path / name), format=format, lossless=True)
        assert convert_data(config, tmp_path) == 0
        back = ConvertConfig(source=str(tmp_path / name), target=str(tmp_path / f"{name}_back"), format="toto")
        assert convert_data(back, tmp_path) == 0
        one, other = EpisodeStore.open(recorded), EpisodeStore.open(tmp_path / f"{name}_back")
        assert one.content_hash() == other.content_hash()
        assert (one.env, one.fps, one.features, one.provenance) == (
            other.env,
            other.fps,
            other.features,
            other.provenance,
        )


def test_the_task_can_be_given(recorded: Path, tmp_path: Path) -> None:
    words = "Pick up the blue cube."
    config = ConvertConfig(source=str(recorded), target=str(tmp_path / "a"), format="lerobot", task=words)
    convert_data(config, tmp_path)
    assert open_recording(tmp_path / "a").tasks == (words,)


def test_bad_requests_leave_nothing(recorded: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(ValueError, match="exists already"):
        convert_data(ConvertConfig(source=str(recorded), target=str(tmp_path / "there"), format="toto"), tmp_path)
    with pytest.raises(ValueError, match="expected format as one of toto, lerobot, robomimic, got 'rlds'"):
        ConvertConfig(source="a", target="b", format="rlds")
    with pytest.raises(ValueError, match=r"ends in .hdf5"):
        convert_data(ConvertConfig(source=str(recorded), target=str(tmp_path / "x"), format="robomimic"), tmp_path)
    with pytest.raises(ValueError, match="does not exist"):
        convert_data(ConvertConfig(source="nowhere", target=str(tmp_path / "x"), format="toto"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


@pytest.mark.parametrize(("format", "name"), [("lerobot", "a"), ("robomimic", "a.hdf5"), ("toto", "a")])
def test_a_bad_episode_leaves_nothing_half_written(tmp_path: Path, format: str, name: str) -> None:
    make_store(tmp_path / "store")
    shard_of(tmp_path / "store", "action").unlink()
    with pytest.raises(ValueError, match="missing"):
        conversion.convert(
            open_recording(tmp_path / "store"), tmp_path / "out" / name, format, conversion.Options(), progress=False
        )
    assert list((tmp_path / "out").iterdir()) == []


KILLED = """
import os, sys
from pathlib import Path
from toto_robot.data import convert
from toto_robot.data.recording import open_recording
write = convert._write
def killed(recording, path, *rest):
    write(recording, path, *rest)
    os.kill(os.getpid(), 9)
convert._write = killed
convert.convert(open_recording(Path(sys.argv[1])), Path(sys.argv[2]), "lerobot", convert.Options(), progress=False)
"""


def test_what_a_killed_conversion_left_is_removed_by_the_next(tmp_path: Path) -> None:
    make_store(tmp_path / "store")
    (tmp_path / "out").mkdir()
    target = tmp_path / "out" / "a"
    process = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "store"), str(target)], check=False)
    assert process.returncode == -9
    assert len(list(target.parent.iterdir())) == 1 and not target.exists(), "a name that is not the target's"
    conversion.convert(open_recording(tmp_path / "store"), target, "lerobot", conversion.Options(), progress=False)
    assert [path.name for path in target.parent.iterdir()] == ["a"]


# ------------------------------------------------------------------------------------------------------------- console


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        cli.main(words)
    return int(stopped.value.code or 0)


def test_the_console_teaches(capsys: pytest.CaptureFixture, recorded: Path, tmp_path: Path) -> None:
    assert run("data") == 2 and run("data", "--help") == 0
    shown = capsys.readouterr().out
    for name in ("info <path>", "check <path>", "view <path>", "replay <path>", "convert <source> <target>"):
        assert shown.count(f"data {name}") == 2
    assert run("data", "inof", "x") == 2 and "did you mean 'data info'" in capsys.readouterr().err
    assert (
        run("data", "info") == 2
        and "data info needs path; usage: toto_robot data info <path>" in capsys.readouterr().err
    )
    assert run("data", "info", "a", "b") == 2 and "one word more: 'b'" in capsys.readouterr().err
    assert run("data", "check", str(recorded), "environment=false", f"run={tmp_path / 'run'}") == 0
    odd = tmp_path / "it's a, (strange) name"
    duplicate(recorded, odd)
    assert run("data", "info", str(odd), f"run={tmp_path / 'odd'}") == 0
    rewrite(odd, "action", lambda array: array * np.nan)
    assert run("data", "check", str(odd), "environment=false", f"run={tmp_path / 'run3'}") == 1
    assert "error   episode 0 step 0 action: expected finite numbers" in capsys.readouterr().out


def test_convert_compresses_and_back(recorded: Path, tmp_path: Path) -> None:
    """Any store of ours; a LeRobot folder straight into a compressed store; an existing target is refused."""
    small, again, foreign = tmp_path / "small", tmp_path / "again", tmp_path / "foreign"
    convert_data(ConvertConfig(source=str(recorded), target=str(small), format="toto", compression="zstd"), tmp_path)
    before, after = EpisodeStore.open(recorded), EpisodeStore.open(small)
    assert after.compression == "zstd" and after.content_hash() == before.content_hash()
    convert_data(ConvertConfig(source=str(small), target=str(again), format="toto"), tmp_path)
    assert EpisodeStore.open(again).content_hash() == before.content_hash()
    EpisodeStore.open(again).append(
        {key: array for key, array in before.episode(0).items() if not key.endswith("_index")},
        {key: values[0].item() for key, values in before.meta.items()},
    )
    lerobot = tmp_path / "lerobot"
    convert_data(ConvertConfig(source=str(recorded), target=str(lerobot), format="lerobot", lossless=True), tmp_path)
    convert_data(
        ConvertConfig(source=str(lerobot), target=str(foreign), format="toto", compression="blosc-lz4"), tmp_path
    )
    store = EpisodeStore.open(foreign)
    assert store.compression == "blosc-lz4"
    assert np.array_equal(store.episode(1)[FRONT], before.episode(1)[FRONT])
    with pytest.raises(ValueError, match="exists already"):
        convert_data(ConvertConfig(source=str(recorded), target=str(small), format="toto"), tmp_path)
    with pytest.raises(ValueError, match="codec of a store is one of"):
        ConvertConfig(source="a", target="b", format="toto", compression="rar")
    with pytest.raises(ValueError, match="only format=toto"):
        ConvertConfig(source="a", target="b", format="lerobot", compression="zstd")
