"""Does every file of a stranger's folder either decode upright and whole, or get left out with a reason, never more?

Folders and files that may not be read, and links in circles, are in test_sources.py.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from make_video import cut_off, make_sound_and_video, make_video, picture
from pictures import make_bomb, make_picture
from PIL import Image
from test_video import UPRIGHT, corners

from toto_robot.data import images
from toto_robot.data.frames import FrameStore, prepare_frames
from toto_robot.data.sources import find_sources
from toto_robot.data.video import decode, probe

FRAMES = 20
GOOD: dict[str, dict[str, Any]] = {
    "h264.mp4": {},
    "h264.mkv": {},
    "h264 high 10.mp4": {"pix_fmt": "yuv420p10le"},
    "h264 444.mp4": {"pix_fmt": "yuv444p"},
    "hevc.mp4": {"codec": "libx265"},
    "hevc main 10.mkv": {"codec": "libx265", "pix_fmt": "yuv420p10le"},
    "hevc 444.mkv": {"codec": "libx265", "pix_fmt": "yuv444p"},
    "vp9.webm": {"codec": "libvpx-vp9"},
    "vp9 444.webm": {"codec": "libvpx-vp9", "pix_fmt": "yuv444p"},
    "av1.mp4": {"codec": "libsvtav1"},
    "av1.webm": {"codec": "libsvtav1"},
    "av1 10 bit.mkv": {"codec": "libsvtav1", "pix_fmt": "yuv420p10le"},
    "mpeg4.avi": {"codec": "mpeg4"},
    "h264.avi": {},
    "variable rate.mkv": {"steps_ms": (10, 120, 33)},
    "variable rate.mp4": {"steps_ms": (10, 120, 33)},
    "odd size.mp4": {"width": 130, "height": 98},
    "portrait.webm": {"codec": "libvpx-vp9", "width": 64, "height": 112},
    "ünï cödé – 東京 🎥 (1) 'quoted'.mp4": {},
    "name with\nline break.mp4": {},
    "UPPER.MP4": {},
}
BAD = {  # name: a part of the reason
    "zero.mp4": "cannot be opened as a video",
    "zero.mkv": "cannot be opened as a video",
    "text.mp4": "cannot be opened as a video",
    "cut, without its index.mp4": "cannot be opened as a video",
    "cut.mkv": "is cut short",
    "cut.webm": "is cut short",
    "sound only.mp4": "has no video stream",
    "sound only.mkv": "has no video stream",
    "one frame.mp4": "has 1 frames, at least 16 are needed",
    "dangling.mp4": "No such file or directory",
    "circle.mp4": "Too many levels of symbolic links",
    "pipe.mp4": "is no file but a folder, pipe or device",
    "picture.mp4": "has 1 frames",
}


def write_bad(folder: Path) -> None:
    """Write the files of BAD."""
    for name in ("zero.mp4", "zero.mkv"):
        (folder / name).touch()
    (folder / "text.mp4").write_text("no video\n" * 1000)
    whole = folder.parent / "whole"
    cut_off(make_video(whole / "a.mp4", 40, noise=20), folder / "cut, without its index.mp4", 0.7)
    cut_off(make_video(whole / "a.mkv", 40, noise=20), folder / "cut.mkv", 0.6)
    cut_off(make_video(whole / "a.webm", 40, noise=20, codec="libvpx-vp9"), folder / "cut.webm", 0.6)
    for name in ("sound only.mp4", "sound only.mkv"):
        make_sound_and_video(folder / name, 0, sound_s=1)
    make_video(folder / "one frame.mp4", 1)
    (folder / "dangling.mp4").symlink_to(folder / "gone.mp4")
    (folder / "circle.mp4").symlink_to(folder / "circle.mp4")
    os.mkfifo(folder / "pipe.mp4")
    make_picture(folder.parent / "whole" / "p.jpg").rename(folder / "picture.mp4")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FrameStore:
    """Prepare the frames of one folder with all of them in it."""
    folder = tmp_path_factory.mktemp("media") / "all of them"
    folder.mkdir()
    for name, options in GOOD.items():
        make_video(folder / name, **{"frames": FRAMES, "width": 128, "height": 96, **options})
    write_bad(folder)
    return prepare_frames(find_sources(folder), folder.parent / "frames", 32, min_frames=16, progress=False)


def test_nothing_is_missing_and_nothing_is_silent(store: FrameStore) -> None:
    """Every file of the folder is either a clip or a recorded reason."""
    rejected = json.loads((store.path / "rejected.json").read_text())
    assert {Path(name).name for name in store.clip_names} == set(GOOD)
    assert {Path(entry["source"]).name for entry in rejected} == set(BAD)


@pytest.mark.parametrize("name", GOOD)
def test_good_files_come_whole_and_upright(store: FrameStore, name: str) -> None:
    clip = store.clip_names.index(f"all of them/{name}")
    start, stop = store.bounds(clip)
    frames = store.frames.read(start, stop)
    assert len(frames) == FRAMES
    assert all(corners(frame) == UPRIGHT for frame in frames)
    grey = frames[:, -6, -6].mean(axis=1)
    np.testing.assert_allclose(grey, np.arange(FRAMES) * 4 + 20, atol=8, err_msg="frames out of order or lost")


def test_the_files_are_what_their_names_say(store: FrameStore) -> None:
    """An encoder that silently falls back to 8 bits or 4:2:0 would make this file test nothing."""
    import av

    folder = store.path.parent / "all of them"
    codecs = {"h264": "h264", "hevc": "hevc", "vp9": "vp9", "av1": "libdav1d", "mpeg4": "mpeg4"}
    for name, options in GOOD.items():
        with av.open(str(folder / name)) as container:
            assert container.streams.video[0].pix_fmt == options.get("pix_fmt", "yuv420p"), name
        wanted = next((codec for start, codec in codecs.items() if name.startswith(start)), None)
        assert wanted in (None, probe(folder / name).codec), name


@pytest.mark.parametrize("name", BAD)
def test_bad_files_have_their_reason(store: FrameStore, name: str) -> None:
    rejected = json.loads((store.path / "rejected.json").read_text())
    (reason,) = [entry["reason"] for entry in rejected if Path(entry["source"]).name == name]
    assert BAD[name] in reason
    assert "/" not in reason, "paths belong to the name"


@pytest.mark.parametrize(("rotation_deg", "expected"), [(90, ["green", "grey", "red", "blue"]),
                                                        (180, ["grey", "blue", "green", "red"])])  # fmt: skip
@pytest.mark.parametrize("codec", ["libx265", "libsvtav1"])
def test_rotation_tags_hold_for_other_codecs(tmp_path: Path, rotation_deg: int, expected: list, codec: str) -> None:
    path = make_video(tmp_path / "v.mp4", 3, 128, 96, codec=codec, rotation_deg=rotation_deg)
    assert [corners(frame) for frame in decode(path, 32)] == [expected] * 3


PICTURES = {  # name: a part of the reason, or None where it is good
    "good.jpg": None,
    "ünï cödé 東京.png": None,
    "zero.jpg": "no picture in a known format",
    "text.png": "no picture in a known format",
    "cut.jpg": "cannot be read as a picture",
    "cut.png": "cannot be read as a picture",
    "cut.webp": "cannot be read as a picture",
    "bomb.png": "10000 x 10000 pixels, more than 89478485: refused as a bomb",
    "large bomb.png": "more than 89478485 pixels: refused as a bomb",
    "video.jpg": "no picture in a known format",
    "script.jpg": "no picture in a known format",
    "dangling.jpg": "No such file or directory",
    "pipe.png": "is no file but a folder, pipe or device",
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_pictures_are_good_or_have_a_reason(tmp_path: Path) -> None:
    folder = tmp_path / "p"
    for name in ("good.jpg", "ünï cödé 東京.png"):
        make_picture(folder / name)
    for name in ("cut.jpg", "cut.png", "cut.webp"):
        whole = tmp_path / f"whole{Path(name).suffix}"
        noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
        Image.fromarray(noise).save(whole)
        cut_off(whole, folder / name, 0.6)
    (folder / "zero.jpg").touch()
    (folder / "text.png").write_text("no picture")
    (folder / "script.jpg").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n")
    make_bomb(folder / "bomb.png", 10_000)
    make_bomb(folder / "large bomb.png", 100_000)
    make_video(tmp_path / "v.mp4", 3).rename(folder / "video.jpg")
    (folder / "dangling.jpg").symlink_to(folder / "gone")
    os.mkfifo(folder / "pipe.png")
    store = prepare_frames(find_sources(folder), tmp_path / "frames", 32, min_frames=16, progress=False)
    rejected = json.loads((store.path / "rejected.json").read_text())
    told = {Path(entry["source"]).name: entry["reason"] for entry in rejected}
    bad = {name: reason for name, reason in PICTURES.items() if reason}
    assert {Path(name).name for name in store.clip_names} == PICTURES.keys() - bad.keys()
    assert told.keys() == bad.keys()
    for name, reason in told.items():
        assert bad[name] in reason, f"{name}: {reason}"


def test_the_largest_picture_that_is_no_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 160 * 96)
    assert images.decode_image(make_picture(tmp_path / "a.png", 10, 160, 96), 32).shape == (32, 32, 3)
    with pytest.raises(ValueError, match="161 x 96 pixels, more than 15360: refused as a bomb"):
        images.decode_image(make_picture(tmp_path / "b.png", 10, 161, 96), 32)
    assert corners(images.decode_image(make_picture(tmp_path / "a.png"), 32)) == UPRIGHT
    assert picture(10, 160, 96).shape == (96, 160, 3)
