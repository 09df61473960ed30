"""Do a stranger's videos come out upright, whole and of the right size, and are broken ones refused with a reason?"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
from make_video import cut_off, damage, make_sound_and_video, make_video, picture

from toto_robot.data.video import BadVideo, decode, probe, resize_square, write_mp4

RED, GREEN, BLUE = (200, 0, 0), (0, 200, 0), (0, 0, 200)


def frames(path: Path, size_px: int = 32, stride: int = 1) -> np.ndarray:
    return np.stack(list(decode(path, size_px, stride=stride)))


def corners(frame: np.ndarray) -> list[str]:
    """Name the colours at top left, top right, bottom left, bottom right."""
    at = len(frame) // 8
    names = []
    for pixel in (frame[at, at], frame[at, -at - 1], frame[-at - 1, at], frame[-at - 1, -at - 1]):
        best = {name: np.abs(pixel.astype(int) - colour).max() for name, colour in
                (("red", RED), ("green", GREEN), ("blue", BLUE))}  # fmt: skip
        name = min(best, key=lambda key: best[key])
        names.append(name if best[name] < 60 else "grey")
    return names


UPRIGHT = ["red", "green", "blue", "grey"]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"codec": "libx265"},
        {"steps_ms": (10, 120, 33, 47)},  # variable rate
        {"width": 96, "height": 160},  # portrait
        {"width": 162, "height": 98},
        {"width": 20, "height": 16},  # smaller than asked for
        {"codec": "mpeg4"},
    ],
    ids=str,
)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_every_frame_comes_once_upright_and_square(tmp_path: Path, options: dict, suffix: str) -> None:
    got = frames(make_video(tmp_path / f"v{suffix}", **options))
    assert got.shape == (40, 32, 32, 3) and got.dtype == np.uint8
    assert all(corners(frame) == UPRIGHT for frame in got)
    grey = got[:, -6, -6].mean(axis=1)
    np.testing.assert_allclose(grey, np.arange(40) * 4 + 20, atol=8, err_msg="frames out of order or lost")


def test_stride_takes_every_nth_frame(tmp_path: Path) -> None:
    path = make_video(tmp_path / "v.mp4")
    np.testing.assert_array_equal(frames(path, stride=7), frames(path)[::7])


@pytest.mark.parametrize(
    ("rotation_deg", "expected"),
    [
        (0, ["red", "green", "blue", "grey"]),
        (90, ["green", "grey", "red", "blue"]),  # counter-clockwise: the right side comes to the top
        (-90, ["blue", "red", "grey", "green"]),
        (180, ["grey", "blue", "green", "red"]),
    ],
)
def test_rotation_tags_are_obeyed(tmp_path: Path, rotation_deg: int, expected: list[str]) -> None:
    assert corners(frames(make_video(tmp_path / "v.mp4", rotation_deg=rotation_deg))[0]) == expected


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        ((0, 1, -1, 0), ["blue", "red", "grey", "green"]),  # what an iPhone held upright writes: turn clockwise
        ((0, -1, 1, 0), ["green", "grey", "red", "blue"]),
        ((-1, 0, 0, 1), ["green", "red", "grey", "blue"]),  # mirrored selfie
        ((0, 1, 1, 0), ["red", "blue", "green", "grey"]),  # transposed
    ],
)
def test_the_matrix_of_a_phone_is_obeyed(tmp_path: Path, matrix: tuple[int, ...], expected: list[str]) -> None:
    """Write a, b, c, d of QuickTime's matrix (x' = ax + cy, y' = bx + dy, y down) into the track header by hand."""
    path = make_video(tmp_path / "v.mp4")
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 4 + 4 + 20 + 8 + 8  # version and flags, times and ids, reserved, layer to volume
    a, b, c, d = (value * 65536 for value in matrix)
    content[at : at + 36] = np.array([a, b, 0, c, d, 0, 0, 0, 1 << 30], ">i4").tobytes()
    path.write_bytes(content)
    assert corners(frames(path)[0]) == expected


def with_white_sides(index: int, width: int, height: int) -> np.ndarray:
    image = picture(index, width, height)
    image[:, : width // 5] = image[:, -width // 5 :] = 255
    return image


def test_wide_pixels_are_shown_wide(tmp_path: Path) -> None:
    """An anamorphic video of 96 x 96 with pixels twice as wide is 192 x 96: the centre square is its middle half."""
    path = make_video(tmp_path / "v.mp4", width=96, height=96, pixel_aspect=Fraction(2), draw=with_white_sides)
    assert (probe(path).width, probe(path).height) == (192, 96)
    assert frames(path).min(axis=3).max() < 240, "the white sides should be cut off"
    assert (
        frames(make_video(tmp_path / "square.mp4", width=96, height=96, draw=with_white_sides)).min(axis=3).max() > 240
    )


def test_the_filter_averages_areas() -> None:
    """The filter is part of the format: a checkerboard of single pixels becomes its mean, nothing aliases."""
    board = np.indices((96, 192)).sum(axis=0) % 2 * 255
    image = np.repeat(board[:, :, None], 3, axis=2).astype(np.uint8)
    assert set(np.unique(resize_square(image, 32))) <= {113, 127, 128, 142}
    picture_of_noise = np.random.default_rng(0).integers(0, 256, (96, 192, 3), dtype=np.uint8)
    expected = cv2.resize(picture_of_noise, (64, 32), interpolation=cv2.INTER_AREA)[:, 16:48]
    np.testing.assert_array_equal(resize_square(picture_of_noise, 32), expected)
    np.testing.assert_array_equal(resize_square(image[:32, :32], 32), image[:32, :32])


@pytest.mark.parametrize("size", [(97, 161), (161, 97), (33, 500), (31, 31), (33, 33)])
def test_any_size_becomes_square(size: tuple[int, int]) -> None:
    assert resize_square(np.zeros((*size, 3), np.uint8), 32).shape == (32, 32, 3)


def test_the_header_is_read(tmp_path: Path) -> None:
    info = probe(make_video(tmp_path / "v.mkv", codec="libx265"))
    assert (info.width, info.height, info.codec) == (160, 96, "hevc")
    assert info.fps == pytest.approx(30, rel=0.05) and info.frames == pytest.approx(40, abs=2)
    assert info.duration_s == pytest.approx(1.32, abs=0.1)


def test_sound_after_the_picture_is_no_damage(tmp_path: Path) -> None:
    assert len(frames(make_sound_and_video(tmp_path / "v.mp4", 30, sound_s=4))) == 30


def broken(name: str, folder: Path) -> Path:
    path = folder / "bad.mp4"
    if name == "empty":
        path.write_bytes(b"")
    elif name == "noise":
        path.write_bytes(np.random.default_rng(0).bytes(5000))
    elif name == "no picture":
        import av

        with av.open(str(path), "w") as container:
            container.mux(container.add_stream("aac", rate=16000).encode(None))
    elif name == "cut off":
        cut_off(make_video(folder / "good.mp4", noise=20), path, 0.6)
    elif name == "cut off, header first":
        cut_off(make_video(folder / "good.mp4", noise=20, faststart=True), path, 0.6)
    elif name == "cut off matroska":
        path = cut_off(make_video(folder / "good.mkv", noise=20), folder / "bad.mkv", 0.6)
    elif name == "cut off webm":
        path = cut_off(make_video(folder / "good.webm", noise=20, codec="libvpx-vp9"), folder / "bad.webm", 0.6)
    elif name == "damaged":
        damage(make_video(folder / "good.mp4", noise=20), path)
    elif name == "damaged hevc":
        damage(make_video(folder / "good.mp4", noise=20, codec="libx265"), path)
    return path


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("empty", "before the first frame"),
        ("noise", "before the first frame"),
        ("cut off", "before the first frame"),
        ("cut off, header first", r"fails after [12]\d decoded frames"),
        ("cut off matroska", r"is cut short: it ends after 0\.\d s \(2\d decoded frames\), its header promises 1\.3 s"),
        ("cut off webm", r"is cut short: it ends after 0\.\d s \(\d+ decoded frames\), its header promises 1\.3 s"),
        ("damaged", r"(frame|fails after) \d+"),
        ("damaged hevc", r"(frame|fails after) \d+"),
        ("missing", "No such file"),
    ],
)
def test_broken_files_are_refused_with_a_reason(tmp_path: Path, name: str, reason: str) -> None:
    path = broken(name, tmp_path)
    told = []
    for _ in range(2):
        with pytest.raises(BadVideo, match=reason) as error:
            frames(path)
        told.append(str(error.value))
    assert told[0] == told[1], "the reason has to be the same every time"


def test_a_header_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadVideo, match="cannot be opened as a video"):
        probe(broken("noise", tmp_path))


@pytest.mark.parametrize("size", [(64, 64), (63, 65)])
def test_written_videos_show_what_was_given(tmp_path: Path, size: tuple[int, int]) -> None:
    given = [picture(index, size[1], size[0]) for index in range(12)]
    assert write_mp4(tmp_path / "v.mp4", iter(given), 12.5) == 12
    got = frames(tmp_path / "v.mp4", size_px=min(size[0] + size[0] % 2, size[1] + size[1] % 2))
    assert len(got) == 12 and all(corners(frame) == UPRIGHT for frame in got)
    assert probe(tmp_path / "v.mp4").fps == 12.5
    assert np.abs(got[5][:60, :60].astype(int) - given[5][:60, :60]).mean() < 6
    assert [path.name for path in tmp_path.iterdir()] == ["v.mp4"]


def test_no_frames_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no frames"):
        write_mp4(tmp_path / "v.mp4", [], 20)
    assert not list(tmp_path.iterdir())
