"""How does one look at what a policy did: a video an episode, and a strip of pictures for the report?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw

from toto_robot.data.video import write_mp4
from toto_robot.run_folder import atomic_path

_SIDE_PX = 256  # of a camera in a video
_STRIP_FRAMES = 8
_STRIP_SIDE_PX = 112
_PLAYBACK_HZ = 20.0
_BAR_PX, _GREEN, _RED = 8, (45, 164, 78), (207, 34, 46)
_NAMES = {True: "success", False: "failure"}


def write_rollout(folder: Path, seed: int, success: bool, frames: Sequence[dict[str, np.ndarray]]) -> None:
    """Write `<success|failure>_<seed>.mp4` with the cameras side by side, and the same as a strip (.png)."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{_NAMES[success]}_{seed}"
    beside = [np.concatenate(list(frame.values()), axis=1) for frame in frames]  # (h, N * w, 3)
    with atomic_path(folder / f"{name}.png") as temporary:
        strip(frames, f"{_NAMES[success]}, seed {seed}, {len(frames)} steps").save(temporary, format="png")
    scale = max(1, _SIDE_PX // beside[0].shape[0])
    write_mp4(folder / f"{name}.mp4", [_enlarge(picture, scale) for picture in beside], _PLAYBACK_HZ)


def strip(frames: Sequence[dict[str, np.ndarray]], title: str) -> Image.Image:
    """Return pictures at even times from left to right, one row a camera, under a line of text."""
    picked = [frames[index] for index in np.linspace(0, len(frames) - 1, _STRIP_FRAMES).round().astype(int)]
    cameras = list(frames[0])
    side, top = _STRIP_SIDE_PX, 18
    canvas = Image.new("RGB", (side * len(picked), top + side * len(cameras)), "white")
    ImageDraw.Draw(canvas).text((4, 3), f"{title}  ({', '.join(cameras)})", fill="black")
    for column, frame in enumerate(picked):
        for row, camera in enumerate(cameras):
            picture = Image.fromarray(frame[camera]).resize((side, side), Image.Resampling.NEAREST)
            canvas.paste(picture, (column * side, top + row * side))
    return canvas


def keep_first(folder: Path, each: int) -> dict[bool, list[Path]]:
    """Remove all but the `each` lowest seeds of successes and of failures; return the strips that stay, by outcome."""
    kept = {}
    for success, name in _NAMES.items():
        strips = sorted(folder.glob(f"{name}_*.png"), key=lambda path: int(path.stem.split("_")[1]))
        for path in strips[each:]:
            path.unlink()
            path.with_suffix(".mp4").unlink(missing_ok=True)
        kept[success] = strips[:each]
    return kept


def write_overview(path: Path, strips: Sequence[Path]) -> None:
    """Stack strips into one picture."""
    pictures = [Image.open(strip_path).convert("RGB") for strip_path in strips]
    width, height = max(picture.width for picture in pictures), sum(picture.height for picture in pictures)
    canvas = Image.new("RGB", (width, height), "white")
    top = 0
    for picture in pictures:
        canvas.paste(picture, (0, top))
        top += picture.height
    with atomic_path(path) as temporary:
        canvas.save(temporary, format="png")


def write_outcomes(path: Path, success: Path, failure: Path) -> None:
    """Write one mp4 of a success (green bar) beside a failure (red bar); the shorter one holds its last picture."""
    sides = [_barred(video, colour) for video, colour in ((success, _GREEN), (failure, _RED))]
    steps = max(len(side) for side in sides)
    pictures = [np.concatenate([side[min(step, len(side) - 1)] for side in sides], axis=1) for step in range(steps)]
    write_mp4(path, pictures, _PLAYBACK_HZ)


def _barred(video: Path, colour: tuple[int, int, int]) -> list[np.ndarray]:
    bar = _BAR_PX
    with av.open(str(video)) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return [np.concatenate([np.full_like(picture[:bar], colour), picture]) for picture in pictures]


def _enlarge(picture: np.ndarray, scale: int) -> np.ndarray:
    return picture.repeat(scale, axis=0).repeat(scale, axis=1)
