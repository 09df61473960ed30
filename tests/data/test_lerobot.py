"""Is a LeRobot export what the format says, and does it come back: numbers exactly, pictures exactly or nearly?"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from recorded import FEATURES, assert_equal, make_episode, make_store

from toto_robot.data import lerobot_writer
from toto_robot.data.convert import Options, convert
from toto_robot.data.lerobot import LeRobotFolder, frames_at
from toto_robot.data.recording import StoreRecording, open_recording
from toto_robot.data.video import BadVideo, write_mp4

# Mean difference of the worst frame of 16 px (of 64 px it is 3.3); decoding to RGB in ffmpeg alone darkens by 1.2.
VIDEO_LEVELS = 7.0


def export(tmp_path: Path, options: Options | None = None, **store: object) -> tuple[StoreRecording, LeRobotFolder]:
    source = StoreRecording(make_store(tmp_path / "store", **store))  # type: ignore[arg-type]
    convert(source, tmp_path / "lerobot", "lerobot", options or Options(), progress=False)
    return source, LeRobotFolder(tmp_path / "lerobot")


def test_there_and_back_with_video(tmp_path: Path) -> None:
    source, exported = export(tmp_path)
    assert_equal(source, exported, video_levels=VIDEO_LEVELS)
    convert(exported, tmp_path / "back", "toto", Options(), progress=False)
    assert_equal(source, open_recording(tmp_path / "back"), video_levels=VIDEO_LEVELS)


def test_there_and_back_without_loss(tmp_path: Path) -> None:
    source, exported = export(tmp_path, Options(lossless=True))
    assert_equal(source, exported)
    assert not (tmp_path / "lerobot" / "videos").exists()
    convert(exported, tmp_path / "back", "toto", Options(), progress=False)
    back = open_recording(tmp_path / "back")
    assert_equal(source, back)
    assert back.store.content_hash() == source.store.content_hash()  # type: ignore[attr-defined]


def test_frames_are_those_of_their_step_in_every_episode(tmp_path: Path) -> None:
    """Nearest of all frames of the data set: a video that is one frame off, or an episode that is, shows."""
    source, exported = export(tmp_path)
    key = "observation.images.front"
    every = np.concatenate([source.episode(index, [key])[key] for index in range(len(source))]).astype(np.int16)
    for index in (3, 1):
        start = sum(source.lengths[:index])
        for step, frame in enumerate(exported.episode(index, [key])[key]):
            assert int(np.abs(every - frame).mean(axis=(1, 2, 3)).argmin()) == start + step


def test_the_files_are_those_of_the_format(tmp_path: Path) -> None:
    """Names and columns as in lerobot 0.4.4; scripts/check_peer_formats.py opens the same in lerobot itself."""
    export(tmp_path)
    root = tmp_path / "lerobot"
    info = json.loads((root / "meta/info.json").read_text())
    assert info["codebase_version"] == "v3.0" and info["fps"] == 20 and isinstance(info["fps"], int)
    assert (info["total_episodes"], info["splits"], info["total_tasks"]) == (4, {"train": "0:4"}, 1)
    assert info["features"]["observation.images.front"]["shape"] == [32, 48, 3]
    assert info["features"]["next.reward"]["shape"] == [1] and info["features"]["task_index"]["dtype"] == "int64"
    episodes = pq.read_table(root / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    ends = np.cumsum([row["length"] for row in episodes])
    assert [row["dataset_to_index"] for row in episodes] == ends.tolist() and info["total_frames"] == ends[-1]
    assert [row["tasks"] for row in episodes] == [["block push"]] * 4
    assert [row["videos/observation.images.front/from_timestamp"] for row in episodes[1:]] == pytest.approx(
        ends[:-1] / 20
    )
    steps = pq.read_table(root / "data/chunk-000/file-000.parquet")
    assert "observation.images.front" not in steps.column_names
    numbers = {key for key in FEATURES if not key.startswith("observation.images.")}
    automatic = {"timestamp", "frame_index", "episode_index", "index", "task_index"}
    assert set(steps.column_names) == numbers | automatic
    assert steps.column("index").to_pylist() == list(range(ends[-1]))
    assert steps.schema.field("action").type == pa.list_(pa.float32(), 2)
    tasks = pq.read_table(root / "meta/tasks.parquet")
    assert json.loads(tasks.schema.metadata[b"pandas"])["index_columns"] == ["__index_level_0__"]


def test_statistics_are_those_of_all_steps(tmp_path: Path) -> None:
    source, exported = export(tmp_path)
    actions = np.concatenate([source.episode(index, ["action"])["action"] for index in range(4)]).astype(np.float64)
    stats = exported.statistics()
    for name, value in (
        ("mean", actions.mean(0)),
        ("std", actions.std(0)),
        ("min", actions.min(0)),
        ("max", actions.max(0)),
    ):
        np.testing.assert_allclose(stats["action"][name], value, rtol=1e-9)
    assert stats["action"]["count"] == [len(actions)]
    image = stats["observation.images.front"]
    assert np.shape(image["mean"]) == (3, 1, 1) and 0.1 < np.mean(image["mean"]) < 0.9
    assert np.shape(stats["next.reward"]["mean"]) == (1,)


@pytest.mark.parametrize("lossless", [False, True])
def test_many_files_and_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lossless: bool) -> None:
    monkeypatch.setattr(lerobot_writer, "DATA_FILE_MB", 0)
    monkeypatch.setattr(lerobot_writer, "VIDEO_FILE_MB", 0)
    monkeypatch.setattr(lerobot_writer, "CHUNK_FILES", 2)
    source, exported = export(tmp_path, Options(lossless=lossless))
    assert (tmp_path / "lerobot/data/chunk-001/file-001.parquet").exists()
    assert lossless or (tmp_path / "lerobot/videos/observation.images.wrist/chunk-001/file-001.mp4").exists()
    assert_equal(source, exported, video_levels=0.0 if lossless else VIDEO_LEVELS)


@pytest.mark.parametrize("fps", [29.97, 7.0])
def test_other_rates(tmp_path: Path, fps: float) -> None:
    source, exported = export(tmp_path, fps=fps)
    assert_equal(source, exported, video_levels=VIDEO_LEVELS)


def test_tasks_in_words(tmp_path: Path) -> None:
    source = StoreRecording(make_store(tmp_path / "store"))
    source.env = {**source.env, "tasks": ["push the block", "pull the block"]}
    source.tasks = ("push the block", "pull the block")
    store = source.store
    meta = {
        **{key: value for key, value in store.meta.items() if key != "length"},
        "task_index": np.array([0, 1, 1, 0]),
    }
    source.__class__ = type("WithTasks", (StoreRecording,), {"meta": property(lambda self: meta)})
    convert(source, tmp_path / "lerobot", "lerobot", Options(), progress=False)
    exported = LeRobotFolder(tmp_path / "lerobot")
    assert exported.tasks == ("push the block", "pull the block")
    rows = pq.read_table(tmp_path / "lerobot/meta/episodes/chunk-000/file-000.parquet").column("tasks").to_pylist()
    assert rows == [["push the block"], ["pull the block"], ["pull the block"], ["push the block"]]
    convert(exported, tmp_path / "back", "toto", Options(), progress=False)
    back = open_recording(tmp_path / "back")
    assert back.tasks == exported.tasks and back.meta["task_index"].tolist() == [0, 1, 1, 0]


def strip_ours(folder: Path) -> None:
    """Make an export look like somebody else's dataset: nothing of ours in it, and a feature that we cannot hold."""
    file = folder / "meta/info.json"
    info = json.loads(file.read_text())
    del info["toto_robot"]
    info["features"]["language"] = {"dtype": "string", "shape": [1], "names": None}
    file.write_text(json.dumps(info))
    rows = folder / "meta/episodes/chunk-000/file-000.parquet"
    table = pq.read_table(rows)
    pq.write_table(table.select([name for name in table.column_names if not name.startswith("toto_robot/")]), rows)


def test_somebody_elses_dataset(tmp_path: Path) -> None:
    source, _ = export(tmp_path)
    strip_ours(tmp_path / "lerobot")
    foreign = LeRobotFolder(tmp_path / "lerobot")
    assert foreign.left_out == {"language": "dtype string"} and foreign.meta == {}
    assert foreign.env["env_id"] == "lerobot/arm" and foreign.tasks == ("block push",)
    for index in range(4):
        mine, theirs = source.episode(index), foreign.episode(index)
        for key in set(mine) - {"observation.images.front", "observation.images.wrist", "gripper.code"}:
            np.testing.assert_array_equal(mine[key], theirs[key])
        assert theirs["gripper.code"].shape == (len(mine["action"]),)  # nothing says that it is a vector of one
    convert(foreign, tmp_path / "mine", "toto", Options(), progress=False)
    assert open_recording(tmp_path / "mine").tasks == ("block push",)


def test_damage_is_named(tmp_path: Path) -> None:
    export(tmp_path)
    root = tmp_path / "lerobot"
    rows = pq.read_table(root / "data/chunk-000/file-000.parquet")
    pq.write_table(rows.slice(0, len(rows) - 2), root / "data/chunk-000/file-000.parquet")
    with pytest.raises(ValueError, match=r"holds \d+ steps of episode 3, meta/episodes says 7"):
        LeRobotFolder(root).episode(3, ["action"])
    video = root / "videos/observation.images.front/chunk-000/file-000.mp4"
    os.truncate(video, 200)
    with pytest.raises(ValueError, match=r"file-000.mp4: episode 0: cannot be read"):
        LeRobotFolder(root).episode(0, ["observation.images.front"])
    info = root / "meta/info.json"
    info.write_text(info.read_text().replace("v3.0", "v1.6"))
    with pytest.raises(ValueError, match=r"LeRobot v1.6, this program reads v2 and v3"):
        LeRobotFolder(root)


def test_frames_are_found_by_time(tmp_path: Path) -> None:
    frames = make_episode(3)["observation.images.front"]
    write_mp4(tmp_path / "a.mp4", list(frames), 10.0)
    found = list(frames_at(tmp_path / "a.mp4", np.array([0.2, 0.3, 0.3]), 0.05))
    for frame, step in zip(found, (2, 3, 3), strict=True):
        assert int(np.abs(frames.astype(int) - frame).mean(axis=(1, 2, 3)).argmin()) == step
    with pytest.raises(BadVideo, match=r"no frame at 9.0000 s, 1 of 2"):
        list(frames_at(tmp_path / "a.mp4", np.array([0.1, 9.0]), 0.05))
