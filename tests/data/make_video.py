"""Videos as strangers have them: HEVC, variable rate, portrait, turned by a tag, cut off, damaged, far too short."""

from __future__ import annotations

import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def picture(index: int, width: int, height: int) -> np.ndarray:
    """Return frame `index`: red top left, green top right, blue bottom left, and a grey level that tells the index."""
    image = np.zeros((height, width, 3), np.uint8)
    image[: height // 2, : width // 2] = (200, 0, 0)
    image[: height // 2, width // 2 :] = (0, 200, 0)
    image[height // 2 :, : width // 2] = (0, 0, 200)
    image[height // 2 :, width // 2 :] = index * 4 % 200 + 20
    return image


def make_video(
    path: Path,
    frames: int = 40,
    width: int = 160,
    height: int = 96,
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    rotation_deg: int | None = None,  # tag: turn counter-clockwise to show
    steps_ms: tuple[int, ...] = (33,),  # time between frames, repeated
    pixel_aspect: Fraction | None = None,
    faststart: bool = False,
    noise: float = 0.0,
    draw: Callable[[int, int, int], np.ndarray] = picture,
) -> Path:
    """Write a video of what `draw(index, width, height)` returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    scheduling = os.sched_getscheduler(0), os.sched_getparam(0)
    with av.open(str(path), "w", options={"movflags": "faststart"} if faststart else {}) as container:
        stream = container.add_stream(codec, rate=30)
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        stream.codec_context.time_base = Fraction(1, 1000)
        stream.codec_context.gop_size = 12
        stream.codec_context.thread_count = 1  # with several threads x264 writes other bytes now and then
        if codec == "libx265":
            stream.codec_context.options = {"x265-params": "log-level=none"}
        if rotation_deg is not None:
            stream.set_display_rotation(rotation_deg)
        if pixel_aspect is not None:
            stream.codec_context.sample_aspect_ratio = pixel_aspect
        time_ms = 0
        for index in range(frames):
            image = draw(index, width, height) + rng.normal(0, noise, (height, width, 1))
            frame = av.VideoFrame.from_ndarray(np.clip(image, 0, 255).astype(np.uint8), format="rgb24")
            frame.pts, frame.time_base = time_ms, Fraction(1, 1000)
            time_ms += steps_ms[index % len(steps_ms)]
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    # SVT-AV1 leaves its caller in SCHED_FIFO 99 where that is allowed: every later test would inherit it.
    os.sched_setscheduler(0, *scheduling)
    return path


def make_sound_and_video(path: Path, frames: int, sound_s: float) -> Path:
    """Write a video whose sound goes on after the picture; without frames it has no picture at all."""
    with av.open(str(path), "w") as container:
        if frames:
            video = container.add_stream("libx264", rate=30)
            video.width, video.height, video.pix_fmt = 64, 64, "yuv420p"
        sound = container.add_stream("aac", rate=16000)
        for index in range(frames):
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture(index, 64, 64), format="rgb24")))
        if frames:
            container.mux(video.encode(None))
        for start in range(0, int(16000 * sound_s), 1024):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 16000, start, Fraction(1, 16000)
            container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
    return path


def cut_off(source: Path, path: Path, part: float) -> Path:
    """Keep the first `part` of a file."""
    path.write_bytes(source.read_bytes()[: int(source.stat().st_size * part)])
    return path


def damage(source: Path, path: Path) -> Path:
    """Flip bytes all over the middle third of a file."""
    content = bytearray(source.read_bytes())
    for at in np.random.default_rng(1).integers(len(content) // 3, 2 * len(content) // 3, 40):
        content[at] ^= 0x5A
    path.write_bytes(content)
    return path
