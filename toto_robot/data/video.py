"""How does a stranger's video file become square uint8 RGB frames, and which files are refused, with what reason?

Frames are decoded one after the other from the start (10 times faster than seeking), shown upright (rotation and mirror
tags of phones, non-square pixels), their shorter side resized to `size_px` with OpenCV's INTER_AREA on RGB, and cut to
the centre square. The filter is part of the format: another one changes token ids.

A file that decodes only partly is refused as a whole, with the reason and how far it came: silent holes and concealed
garbage would become training data.
"""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import numpy.typing as npt

from toto_robot.run_folder import atomic_path

Frame = npt.NDArray[np.uint8]  # (h, w, 3) RGB

EXTENSIONS = (
    *(".mp4", ".m4v", ".mov", ".3gp", ".mkv", ".webm", ".avi", ".wmv", ".flv", ".ogv"),
    *(".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".h264", ".h265", ".hevc", ".gif"),
)
_EARLY_END_S = 0.5  # a file may end this much before what its header promises: containers round, players pad


class BadVideo(ValueError):
    """A video or picture that cannot be used; the message is the reason, without the path."""


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What the header of a video says; the frames themselves may turn out otherwise."""

    path: Path
    width: int  # as shown: after rotation and pixel shape, where the header knows them
    height: int
    fps: float  # the container's guess; a mean where the rate varies; 0 unknown
    frames: int  # estimate, for progress bars; 0 unknown
    duration_s: float  # 0 unknown
    codec: str


def refuse_special(path: Path) -> None:
    """Raise BadVideo for a pipe or device, which to open may take for ever."""
    with contextlib.suppress(OSError):  # of a file that is not there, or closed: opening it says why
        if not stat.S_ISREG(path.stat().st_mode):
            raise BadVideo("is no file but a folder, pipe or device")


def probe(path: Path) -> VideoInfo:
    """Read a video's header; BadVideo where it is no video."""
    refuse_special(path)
    try:
        with av.open(str(path)) as container:
            stream = _video_stream(container)
            pixel = stream.sample_aspect_ratio or Fraction(1)
            rate = stream.guessed_rate or stream.average_rate
            fps = float(rate) if rate else 0.0
            duration_s = _promised_s(container)
            return VideoInfo(
                path=path,
                width=round(stream.codec_context.width * pixel),
                height=stream.codec_context.height,
                fps=fps,
                frames=round(duration_s * fps) or stream.frames,
                duration_s=duration_s,
                codec=stream.codec_context.name,
            )
    except (av.FFmpegError, OSError) as error:
        raise BadVideo(f"cannot be opened as a video ({_why(error)})") from error


def decode(path: Path, size_px: int, *, stride: int = 1) -> Iterator[Frame]:
    """Yield every `stride`-th frame of a video as (size_px, size_px, 3), upright, in the order of presentation.

    Frames of a variable rate are taken as they come. BadVideo where the file is broken, with the number of frames that
    came before; a caller that stops early is not told about what follows.
    """
    if size_px < 1 or stride < 1:
        raise ValueError(f"size_px and stride must be at least 1; got {size_px} and {stride}")
    refuse_special(path)
    count = 0
    try:
        with av.open(str(path)) as container:
            stream = _video_stream(container)
            # Not frame threads: after an error they drop a number of frames that varies from run to run.
            stream.thread_type = "SLICE"
            if stream.codec_context.name == "hevc":  # conceals damage without marking the frame, unless told not to
                stream.codec_context.options = {"err_detect": "explode"}
            pixel = float(stream.sample_aspect_ratio or 1)
            end_s = 0.0
            for packet in container.demux():
                end_s = max(end_s, _end_s(packet, container))
                for frame in packet.decode() if packet.stream is stream else ():
                    if frame.is_corrupt:
                        raise BadVideo(f"is damaged: frame {count} does not decode, {count} frames before it do")
                    if count % stride == 0:
                        yield resize_square(_upright(frame), size_px, pixel)
                    count += 1
            promised_s = _promised_s(container)
    except (av.FFmpegError, OSError) as error:
        how_far = f"after {count} decoded frames" if count else "before the first frame"
        raise BadVideo(f"fails {how_far} ({_why(error)})") from error
    if count == 0:
        raise BadVideo("holds no frames")
    if end_s < 0.95 * promised_s and end_s < promised_s - _EARLY_END_S:
        ends = f"it ends after {end_s:.1f} s ({count} decoded frames)"
        raise BadVideo(f"is cut short: {ends}, its header promises {promised_s:.1f} s")


def resize_square(frame: Frame, size_px: int, pixel_aspect: float = 1.0) -> Frame:
    """Resize the shorter side of (h, w, 3) to `size_px` by area averaging and cut the centre square.

    `pixel_aspect` is width over height of one pixel. Enlarging interpolates linearly: areas would only repeat pixels.
    """
    height, width = frame.shape[:2]
    scale = size_px / min(height, width * pixel_aspect)
    new_width = max(size_px, round(width * pixel_aspect * scale))
    new_height = max(size_px, round(height * scale))
    if (new_height, new_width) != (height, width):
        smaller = new_height <= height and new_width <= width
        method = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
        frame = cv2.resize(frame, (new_width, new_height), interpolation=method)
    top, left = (new_height - size_px) // 2, (new_width - size_px) // 2
    return np.ascontiguousarray(frame[top : top + size_px, left : left + size_px])


def write_mp4(path: Path, frames: Iterable[Frame], fps: float) -> int:
    """Write (h, w, 3) frames of one size as H.264 in mp4, atomically; return how many.

    Odd sizes get one more row or column, the last one repeated, because 4:2:0 video needs even ones.
    """
    count = 0
    with atomic_path(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000), options={"crf": "17"})
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            even = np.pad(frame, ((0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0)), mode="edge")
            if count == 0:
                stream.height, stream.width = even.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))
            count += 1
        if count == 0:
            raise ValueError(f"no frames to write to {path}")
        container.mux(stream.encode(None))
    return count


def _video_stream(container: av.container.InputContainer) -> av.VideoStream:
    if not container.streams.video:
        raise BadVideo("has no video stream")
    return container.streams.video[0]


def _promised_s(container: av.container.InputContainer) -> float:
    return float(container.duration or 0) / av.time_base


def _end_s(packet: av.Packet, container: av.container.InputContainer) -> float:
    """Return when a packet ends, in seconds from the container's start; 0 where it does not say.

    Packets of every stream count: sound that goes on after the picture is no damage.
    """
    if packet.pts is None or packet.stream.type not in ("video", "audio"):
        return 0.0
    start_s = float(container.start_time or 0) / av.time_base
    return float((packet.pts + (packet.duration or 0)) * packet.time_base) - start_s


def _upright(frame: av.VideoFrame) -> Frame:
    """Return the RGB pixels of a frame as its display matrix wants them shown: turned and mirrored by quarter turns.

    The matrix is nine 32-bit numbers; x' = a x + c y, y' = b x + d y with y downwards (QuickTime's `tkhd`).
    """
    rgb: Frame = frame.to_ndarray(format="rgb24")
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return rgb
    a, b, _, c, d = np.frombuffer(bytes(matrix), dtype="<i4")[:5].tolist()
    if abs(a) + abs(d) >= abs(b) + abs(c):
        flip_x, flip_y = a < 0, d < 0
    else:
        rgb, flip_x, flip_y = rgb.transpose(1, 0, 2), c < 0, b < 0
    return np.ascontiguousarray(rgb[:: -1 if flip_y else 1, :: -1 if flip_x else 1])


def _why(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)
