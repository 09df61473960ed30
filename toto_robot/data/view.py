"""What does a data set look like: some episodes over time on one sheet, and the same episodes as one video?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from toto_robot.data.episodes import IMAGE_PREFIX
from toto_robot.data.flat_store import store_kind
from toto_robot.data.frames import FrameStore
from toto_robot.data.recording import Recording
from toto_robot.data.shards import Array
from toto_robot.data.video import Frame

_TEXT_PX = 14  # height of a line of text
_UNKNOWN_RATE_HZ = 20.0


@dataclass(frozen=True)
class Clips:
    """What can be looked at: `count` clips, each seen by the same cameras."""

    count: int
    cameras: tuple[str, ...]
    label: Callable[[int], str]
    rate_hz: Callable[[int], float]
    frames: Callable[[int, str], Array]  # (clip, camera) -> (T, h, w, 3) uint8


def recording_clips(recording: Recording, cameras: Sequence[str] = ()) -> Clips:
    """Return the episodes of a recording; ValueError where it has no such cameras."""
    there = tuple(key.removeprefix(IMAGE_PREFIX) for key in recording.features if key.startswith(IMAGE_PREFIX))
    unknown = [camera for camera in cameras if camera not in there]
    if unknown or not there:
        raise ValueError(f"{recording.path} has no camera {', '.join(unknown)}; it has {', '.join(there) or 'none'}")
    meta, lengths = recording.meta, recording.lengths

    def label(index: int) -> str:
        numbers = "  ".join(f"{key} {values[index]}" for key, values in meta.items())
        return f"episode {index}  {lengths[index]} steps, {lengths[index] / recording.fps:.2f} s  {numbers}"

    def frames(index: int, camera: str) -> Array:
        key = IMAGE_PREFIX + camera
        return recording.episode(index, [key])[key]

    return Clips(len(recording), tuple(cameras) or there, label, lambda index: recording.fps, frames)


def frame_clips(path: Path) -> Clips | None:
    """Return the clips of a frame store, None where `path` is none; ValueError for tokens, which show nothing."""
    kind = store_kind(path)
    if kind == "tokens":
        raise ValueError(f"{path} holds tokens; look at the frames or episodes that they were made of")
    if kind != "frames":
        return None
    store = FrameStore.open(path)

    def frames(index: int, _: str) -> Array:
        return store.frames.read(*store.bounds(index))

    return Clips(
        len(store),
        ("frames",),
        lambda index: f"clip {index}  {store.clip_names[index]}",
        lambda index: float(store.records[index].get("fps") or _UNKNOWN_RATE_HZ),
        frames,
    )


def spread(count: int, wanted: int) -> list[int]:
    """Return up to `wanted` of `count` places, evenly spread, first and last included."""
    return np.unique(np.linspace(0, count - 1, min(count, wanted)).round().astype(int)).tolist()


def sheet(clips: Clips, chosen: Sequence[int], moments: int, min_side_px: int) -> Image.Image:
    """Return a picture: for each chosen clip a line of text and, per camera, `moments` pictures from start to end."""
    rows = [_row(clips, index, moments, min_side_px) for index in chosen]
    canvas = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), "white")
    top = 0
    for row in rows:
        canvas.paste(row, (0, top))
        top += row.height
    return canvas


def film(clips: Clips, chosen: Sequence[int], min_side_px: int) -> Iterator[Frame]:
    """Yield the frames of the chosen clips, one clip after the other, cameras side by side under a line of text."""
    width = max(_beside(_enlarged_all(clips, index, min_side_px, at=[0]))[0].shape[1] for index in chosen)
    for index in chosen:
        pictures = _beside(_enlarged_all(clips, index, min_side_px, at=None))
        rate_hz = clips.rate_hz(index)
        for step, picture in enumerate(pictures):
            text = f"{clips.label(index).split('  ')[0]}  step {step} of {len(pictures)}  {step / rate_hz:.2f} s"
            yield _under_text(picture, text, max(width, picture.shape[1]))


def _row(clips: Clips, index: int, moments: int, min_side_px: int) -> Image.Image:
    length = len(clips.frames(index, clips.cameras[0]))
    at = np.linspace(0, length - 1, moments).round().astype(int).tolist()
    strips = [np.concatenate(list(frames), axis=1) for frames in _enlarged_all(clips, index, min_side_px, at)]
    width = max(strip.shape[1] for strip in strips)
    padded = [np.pad(strip, ((0, 0), (0, width - strip.shape[1]), (0, 0)), constant_values=255) for strip in strips]
    label = f"{clips.label(index)}   cameras: {', '.join(clips.cameras)}"
    row = Image.fromarray(_under_text(np.concatenate(padded), label, width))
    for column, step in enumerate(at):
        seconds = f"{step / clips.rate_hz(index):.2f} s"
        place = (column * strips[0].shape[1] // moments + 3, _TEXT_PX + 2)
        ImageDraw.Draw(row).text(place, seconds, fill="yellow", stroke_width=1, stroke_fill="black")
    return row


def _enlarged_all(clips: Clips, index: int, min_side_px: int, at: Sequence[int] | None) -> list[Array]:
    """Return the frames of every camera, all or those `at` some steps, at least `min_side_px` on the shorter side."""
    found = []
    for camera in clips.cameras:
        frames = clips.frames(index, camera)
        frames = frames if at is None else frames[list(at)]
        factor = -(-min_side_px // min(frames.shape[1:3]))
        found.append(frames.repeat(factor, axis=1).repeat(factor, axis=2))
    return found


def _beside(cameras: Sequence[Array]) -> Array:
    """Return the frames of all cameras side by side: each (T, h, w, 3) to (T, H, W, 3)."""
    height = max(frames.shape[1] for frames in cameras)
    padded = [np.pad(frames, ((0, 0), (0, height - frames.shape[1]), (0, 0), (0, 0))) for frames in cameras]
    return np.concatenate(padded, axis=2)


def _under_text(picture: Array, text: str, width: int) -> Frame:
    """Return the picture with a line of text above, padded in white to `width`."""
    canvas = Image.new("RGB", (width, picture.shape[0] + _TEXT_PX), "white")
    ImageDraw.Draw(canvas).text((2, 1), text, fill="black")
    canvas.paste(Image.fromarray(picture), (0, _TEXT_PX))
    return np.asarray(canvas)
