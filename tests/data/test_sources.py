"""Are videos, pictures and episodes found wherever they lie, once each, and do pictures come out as frames do?"""

from __future__ import annotations

import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from make_video import make_video, picture
from pictures import make_picture
from PIL import Image
from test_frames import episodes, prepare
from test_lerobot import VIDEO_LEVELS, export, strip_ours

from toto_robot.data.convert import Options
from toto_robot.data.lerobot import LeRobotFolder
from toto_robot.data.recording import open_recording
from toto_robot.data.sources import find_sources, source_names
from toto_robot.data.video import resize_square, write_mp4


def ids(*data: Path, limits: tuple[int, ...] = ()) -> list[str]:
    return [source.id for source in find_sources(*data, limits=limits)]


@pytest.mark.parametrize(
    ("name", "options", "levels"),
    [
        ("a.png", {}, 0),
        ("a.PNG", {}, 0),
        ("a.bmp", {}, 0),
        ("a.webp", {"lossless": True}, 0),
        ("a.jpg", {"quality": 95}, 6),
        ("a.JPEG", {"quality": 95}, 6),
        ("grüße 東京 .jpeg", {"quality": 95}, 6),
    ],
)
def test_pictures_are_resized_as_frames_of_videos_are(tmp_path: Path, name: str, options: dict, levels: int) -> None:
    make_picture(tmp_path / "photos" / name, **options)
    (source,) = find_sources(tmp_path / "photos")
    assert (source.id, source.source, source.kind, source.header()) == (f"photos/{name}", "photos", "images", (1, 0.0))
    (frame,) = source.frames(32)
    expected = resize_square(picture(10, 160, 96), 32)
    assert np.abs(frame.astype(int) - expected).mean() <= levels
    assert frame.shape == (32, 32, 3) and frame.dtype == np.uint8


def converted(mode: str) -> Image.Image:
    image = Image.fromarray(picture(10, 160, 96))
    if mode == "I;16":
        return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    return image.convert(mode)


@pytest.mark.parametrize(("mode", "name"), [("P", "a.png"), ("RGBA", "a.png"), ("L", "a.png"), ("I;16", "a.png"),
                                            ("1", "a.png"), ("CMYK", "a.jpg"), ("P", "gif.jpg")])  # fmt: skip
def test_pictures_of_any_mode_become_rgb(tmp_path: Path, mode: str, name: str) -> None:
    (tmp_path / "p").mkdir()
    image = converted(mode)
    image.save(tmp_path / "p" / name, format="GIF" if name == "gif.jpg" else None)
    (frame,) = find_sources(tmp_path / "p")[0].frames(32)
    expected = resize_square(np.array(image.convert("RGB") if mode != "I;16" else converted("L").convert("RGB")), 32)
    assert np.abs(frame.astype(int) - expected).mean() < 6


def test_photos_of_phones_are_upright(tmp_path: Path) -> None:
    turned = Image.fromarray(np.rot90(picture(10, 96, 160)))  # as the sensor has it
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn clockwise to show
    (tmp_path / "p").mkdir()
    turned.save(tmp_path / "p" / "a.jpg", exif=exif, quality=95)
    (frame,) = find_sources(tmp_path / "p")[0].frames(32)
    assert np.abs(frame.astype(int) - resize_square(picture(10, 96, 160), 32)).mean() < 6


def test_links_are_followed_and_circles_end(tmp_path: Path) -> None:
    top = tmp_path / "top"
    make_picture(top / "b" / "deep" / "x.png")
    (top / "b" / "deep" / "up").symlink_to(top)  # a circle
    (top / "a_link").symlink_to(top / "b")  # sorted before b, and yet b keeps its name
    (top / "self.png").symlink_to(top / "self.png")  # a circle of one
    make_picture(tmp_path / "elsewhere" / "y.png")
    (top / "far").symlink_to(tmp_path / "elsewhere")
    (top / "again").symlink_to(tmp_path / "elsewhere")
    assert ids(top) == ["top/again/y.png", "top/b/deep/x.png", "top/self.png"]
    store = prepare(find_sources(top), tmp_path / "frames")
    assert store.clip_names == ["top/again/y.png", "top/b/deep/x.png"]
    assert "symbolic links" in (tmp_path / "frames" / "rejected.json").read_text()


@pytest.fixture
def somebody() -> Iterator[Path]:
    """Yield a folder of another user's whom this process is for the while, where it is root: root may read all."""
    folder = Path(tempfile.mkdtemp())
    was_root = os.geteuid() == 0
    if was_root:
        os.chown(folder, 65534, 65534)
        os.seteuid(65534)
    yield folder
    if was_root:
        os.seteuid(0)
    for parent, _, _ in os.walk(folder):
        os.chmod(parent, 0o700)
    shutil.rmtree(folder)


def test_closed_folders_and_files_are_skipped_with_their_reason(somebody: Path) -> None:
    for name in ("v/closed/a.png", "v/open/b.png", "v/c.png"):
        make_picture(somebody / name)
    os.chmod(somebody / "v" / "closed", 0)
    os.chmod(somebody / "v" / "c.png", 0)
    store = prepare(find_sources(somebody / "v"), somebody / "frames")
    assert store.clip_names == ["v/open/b.png"]
    rejected = {entry["source"]: entry["reason"] for entry in json.loads((store.path / "rejected.json").read_text())}
    assert rejected == {
        "v/closed": "is a folder that cannot be read (Permission denied)",
        "v/c.png": "cannot be read as a picture (Permission denied)",
    }
    os.chmod(somebody / "v" / "open", 0)
    (somebody / "v" / "c.png").unlink()
    with pytest.raises(ValueError, match=r"holds no .*v/closed cannot be read \(Permission denied\)"):
        find_sources(somebody / "v")


def test_one_kind_a_folder_and_a_line_about_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_video(tmp_path / "m" / "v.mp4", 3)
    make_picture(tmp_path / "m" / "thumbnail.jpg")
    assert ids(tmp_path / "m") == ["m/v.mp4"]
    assert "m holds videos: its 1 pictures are left out" in capsys.readouterr().out
    with pytest.raises(ValueError, match="single picture; give a folder"):
        find_sources(tmp_path / "m" / "thumbnail.jpg")


def test_a_mixture_of_all_kinds_becomes_one_store(tmp_path: Path) -> None:
    make_video(tmp_path / "web" / "v.mp4", 20)
    make_picture(tmp_path / "photos" / "p.png")
    episodes(tmp_path / "demos" / "episodes", 16, count=1)
    export(tmp_path / "x")
    data = [tmp_path / "web", tmp_path / "photos", tmp_path / "demos", tmp_path / "x" / "lerobot"]
    store = prepare(find_sources(*data), tmp_path / "frames", least=5)
    kinds = {record["source"]: record["kind"] for record in store.records}
    assert kinds == {"web": "video", "photos": "images", "demos": "video", "lerobot": "video"}
    assert sum(record["source"] == "lerobot" for record in store.records) == 2 * 4


def test_names_tell_folders_of_one_name_apart(tmp_path: Path) -> None:
    for run in ("a", "b"):
        episodes(tmp_path / run / "episodes", 8, count=1)
    data = [tmp_path / "a" / "episodes", tmp_path / "b" / "episodes"]
    assert source_names([*data, "ego4d:/x"]) == ["a/episodes", "b/episodes", "ego4d"]
    assert ids(*data)[::2] == [f"{run}/episodes/episode_000000/front" for run in ("a", "b")]
    assert {source.source for source in find_sources(*data)} == {"a/episodes", "b/episodes"}


def test_limits_choose_the_same_files_from_everywhere(tmp_path: Path) -> None:
    for index in range(40):
        (tmp_path / "v" / f"{index // 10}").mkdir(parents=True, exist_ok=True)
        (tmp_path / "v" / f"{index // 10}" / f"{index:02d}.mp4").touch()
    few, more = ids(tmp_path / "v", limits=(8,)), ids(tmp_path / "v", limits=(20,))
    assert len(few) == 8 and len(more) == 20 and set(few) < set(more)
    assert few == sorted(few)
    assert {name.split("/")[1] for name in more} == {"0", "1", "2", "3"}
    episodes(tmp_path / "demos", 8, count=5)
    assert len(ids(tmp_path / "demos", limits=(2,))) == 4, "both cameras of two episodes"
    assert len(ids(tmp_path / "v", tmp_path / "demos", limits=(3, 1))) == 3 + 2
    for wrong in ((1, 2, 3), (0,)):
        with pytest.raises(ValueError, match="one limit of at least 1, or one for each of 2 paths"):
            find_sources(tmp_path / "v", tmp_path / "demos", limits=wrong)


def as_version_21(folder: Path, key: str, pictures: list[np.ndarray]) -> None:
    """Rewrite an export as lerobot 0.3 would have: a file per episode, JSON lines; the camera `key` as video."""
    info = json.loads((folder / "meta/info.json").read_text())
    table = pq.read_table(folder / "data/chunk-000/file-000.parquet")
    shutil.rmtree(folder / "data")
    lines = []
    for episode, frames in enumerate(pictures):
        rows = table.filter(pa.compute.field("episode_index") == episode).drop_columns([key])
        file = folder / f"data/chunk-{episode // 2:03d}/episode_{episode:06d}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(rows, file)
        write_mp4(folder / f"videos/chunk-{episode // 2:03d}/{key}/episode_{episode:06d}.mp4", frames, info["fps"])
        lines.append(json.dumps({"episode_index": episode, "tasks": ["block push"], "length": len(frames)}))
    (folder / "meta/episodes.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "meta/tasks.jsonl").write_text('{"task_index": 0, "task": "block push"}\n')
    shutil.rmtree(folder / "meta/episodes")
    (folder / "meta/tasks.parquet").unlink()
    info["features"][key]["dtype"] = "video"
    chunk = "chunk-{episode_chunk:03d}"
    info |= {
        "codebase_version": "v2.1", "chunks_size": 2,
        "data_path": f"data/{chunk}/episode_{{episode_index:06d}}.parquet",
        "video_path": f"videos/{chunk}/{{video_key}}/episode_{{episode_index:06d}}.mp4",
    }  # fmt: skip
    (folder / "meta/info.json").write_text(json.dumps(info))


@pytest.mark.parametrize("version", ["v3.0", "v2.1"])
def test_clips_of_lerobot_data_sets(tmp_path: Path, version: str) -> None:
    """Episodes of one video file must not bleed into each other; stored pictures come out to the bit."""
    front, wrist = "observation.images.front", "observation.images.wrist"
    recorded, _ = export(tmp_path, Options(lossless=version == "v2.1"))
    strip_ours(tmp_path / "lerobot")
    if version == "v2.1":
        as_version_21(tmp_path / "lerobot", front, [recorded.episode(index, [front])[front] for index in range(4)])
    clips = find_sources(tmp_path / "lerobot")
    cameras = ("front", "wrist")
    assert [clip.id for clip in clips] == [
        f"lerobot/episode_{index:06d}/{camera}" for index in range(4) for camera in cameras
    ]
    assert len({clip.fingerprint() for clip in clips}) >= 4
    for clip in clips:
        index, key = int(clip.group[-6:]), front if clip.id.endswith("front") else wrist
        truth = np.stack([resize_square(frame, 16) for frame in recorded.episode(index, [key])[key]])
        assert clip.header() == (len(truth), 20.0)
        got = np.stack(list(clip.frames(16)))
        assert got.shape == truth.shape
        exact = version == "v2.1" and key == wrist
        assert np.abs(got.astype(int) - truth).mean() <= (0 if exact else VIDEO_LEVELS)
    if version == "v2.1":  # and so it can be looked at, checked and converted
        folder = open_recording(tmp_path / "lerobot")
        assert folder.tasks == ("block push",) and folder.lengths == recorded.lengths
        np.testing.assert_array_equal(
            folder.episode(2, ["action"])["action"], recorded.episode(2, ["action"])["action"]
        )
        (tmp_path / "lerobot/videos/chunk-001" / front / "episode_000003.mp4").unlink()
        store = prepare(find_sources(tmp_path / "lerobot"), tmp_path / "frames", least=1)
        assert len(store) == 7
        assert "episode 3: cannot be read (No such file" in (tmp_path / "frames" / "rejected.json").read_text()
        assert isinstance(folder, LeRobotFolder)


def test_a_lerobot_data_set_without_cameras_is_refused(tmp_path: Path) -> None:
    export(tmp_path)
    info = tmp_path / "lerobot/meta/info.json"
    about = json.loads(info.read_text())
    for features in (about["features"], about["toto_robot"]["features"]):
        for key in [key for key in features if "images" in key]:
            del features[key]
    info.write_text(json.dumps(about))
    with pytest.raises(ValueError, match="lerobot holds no images: its keys are"):
        find_sources(tmp_path / "lerobot")


def test_damaged_pictures_have_reasons_without_paths(tmp_path: Path) -> None:
    whole = io.BytesIO()
    Image.fromarray(picture(3, 64, 64)).save(whole, "JPEG")
    folder = tmp_path / "p"
    folder.mkdir()
    (folder / "cut.jpg").write_bytes(whole.getvalue()[:400])
    (folder / "text.png").write_text("not a picture")
    for source in find_sources(folder):
        with pytest.raises(ValueError, match=r"cannot be read as a picture \(.+\)") as error:
            list(source.frames(16))
        assert str(tmp_path) not in str(error.value)
