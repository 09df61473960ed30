"""Small videos for the tests: a bright square that moves over a dark ground."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from toto_robot.data.video import write_mp4


def square_frames(frames: int, height: int = 96, width: int = 96, seed: int = 0) -> np.ndarray:
    """Return (frames, height, width, 3) uint8."""
    generator = np.random.default_rng(seed)
    start, speed = generator.uniform(8, 40, 2), generator.uniform(0.5, 1.5, 2)
    picture = np.zeros((frames, height, width, 3), np.uint8)
    picture[:] = np.linspace(20, 90, width)[None, None, :, None]
    for index in range(frames):
        top, left = (start + speed * index).astype(int) % (min(height, width) - 24)
        picture[index, top : top + 20, left : left + 20] = (220, 160, 40)
    return picture


def write_plain(folder: Path, count: int, frames: int) -> Path:
    """Write `count` ordinary mp4 files."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        write_mp4(folder / f"plain_{index}.mp4", square_frames(frames, seed=index), fps=20)
    return folder


def write_odd(folder: Path) -> Path:
    """Write what a stranger's folder holds: HEVC, variable frame rate, portrait; a broken file and one of 3 frames."""
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "hevc.mp4", square_frames(40, seed=1), codec="libx265", options={"x265-params": "log-level=none"})
    _write(folder / "variable_rate.mkv", square_frames(40, seed=2), steps=[1, 3, 2])
    _write(folder / "portrait.mp4", square_frames(40, height=128, width=72, seed=3))
    _write(folder / "three_frames.mp4", square_frames(3, seed=4))
    whole = folder / "three_frames.mp4"
    (folder / "corrupt.mp4").write_bytes(whole.read_bytes()[:200] + b"not a video" * 50)
    return folder


def _write(
    path: Path,
    frames: np.ndarray,
    *,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    steps: list[int] | None = None,
) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=30, options=options or {})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        stream.codec_context.time_base = Fraction(1, 30)
        stream.codec_context.thread_count = 1  # with several threads x264 writes other bytes now and then
        time = 0
        for index, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 30)
            time += steps[index % len(steps)] if steps else 1
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
