"""What does a continued video look like: truth and samples side by side, and where the truth was a surprise?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw

from toto_robot.data.video import Frame
from toto_robot.pretrain.pictures import draw_rows

Column = tuple[str, np.ndarray]  # its label, and its frames uint8 (T, h, w, 3)

_TEXT_PX = 14  # height of a line of text
_GAP_PX = 4
_BORDER_PX = 3
_MADE = (220, 30, 30)
_MISSING = 200  # grey where a column has ended
_SHEET_COLUMNS = 16


def heat(frames: np.ndarray, nats: np.ndarray, most_nats: float) -> np.ndarray:
    """Paint surprise (T, rows, columns) over grey frames (T, h, w, 3): dark at 0 nats, bright at `most_nats`."""
    h, w = frames.shape[1:3]
    level = np.clip(nats / most_nats, 0, 1).repeat(h // nats.shape[1], axis=1).repeat(w // nats.shape[2], axis=2)
    colour = matplotlib.colormaps["inferno"](level)[..., :3] * 255
    grey = frames.mean(-1, keepdims=True)
    # What is expected shows the video, what surprises shows the colour.
    opacity = 0.35 + 0.5 * level[..., None]
    return ((1 - opacity) * grey + opacity * colour).round().astype(np.uint8)


def scale_bar(most_nats: float, height_px: int) -> Frame:
    """Return the colours of `heat` over mid-grey from 0 (below) to `most_nats`, with numbers, (height_px, w, 3)."""
    levels = np.linspace(most_nats, 0, height_px)[None, :, None]
    strip = heat(np.full((1, height_px, 1, 3), 128, np.uint8), levels, most_nats)[0].repeat(16, axis=1)
    canvas = Image.new("RGB", (72, height_px), "white")
    canvas.paste(Image.fromarray(strip), (0, 0))
    for nats in range(int(most_nats) + 1):
        top = min(max(0, round((1 - nats / most_nats) * height_px) - _TEXT_PX // 2), height_px - _TEXT_PX)
        ImageDraw.Draw(canvas).text((20, top), f"{nats} nats", fill="black")
    return np.asarray(canvas)


def film(
    columns: Sequence[Column], captions: Sequence[str], picture_px: int, *,
    given: int | None = None, made_from: int = 0, beside: Frame | None = None,
) -> Iterator[Frame]:  # fmt: skip
    """Yield a picture a caption: the columns side by side, each below its label, all below the caption.

    Pictures are enlarged by a whole factor to at least `picture_px`. From frame `given` on, the columns from
    `made_from` on have a red border: they are not recorded but made. A column that has ended is grey. `beside` stands
    at the right.
    """
    factor = -(-picture_px // min(columns[0][1].shape[1:3]))
    height, width = (side * factor for side in columns[0][1].shape[1:3])
    for index, caption in enumerate(captions):
        total = len(columns) * (width + _GAP_PX) + (0 if beside is None else beside.shape[1] + _GAP_PX)
        canvas = Image.new("RGB", (total, height + 2 * _TEXT_PX + _GAP_PX), "white")
        pen = ImageDraw.Draw(canvas)
        pen.text((2, 1), caption, fill="black")
        for place, (label, frames) in enumerate(columns):
            left = place * (width + _GAP_PX)
            pen.text((left + 2, _TEXT_PX), label, fill="black")
            canvas.paste(_enlarged(frames, index, factor), (left, 2 * _TEXT_PX))
            if given is not None and index >= given and place >= made_from:
                box = (left, 2 * _TEXT_PX, left + width - 1, 2 * _TEXT_PX + height - 1)
                pen.rectangle(box, outline=_MADE, width=_BORDER_PX)
        if beside is not None:
            canvas.paste(Image.fromarray(beside), (len(columns) * (width + _GAP_PX), 2 * _TEXT_PX))
        yield np.asarray(canvas)


def draw_sheet(path: Path, rows: Sequence[Column], *, title: str, given: int) -> Path:
    """Draw up to 16 moments of each row below each other, a line before the first that was not given."""
    length = max(len(frames) for _, frames in rows)
    chosen = np.unique(np.linspace(0, length - 1, _SHEET_COLUMNS).round().astype(int))
    shown = [(label, frames[chosen[chosen < len(frames)]]) for label, frames in rows]
    return draw_rows(path, shown, title=title, mark=int((chosen < given).sum()))


def _enlarged(frames: np.ndarray, index: int, factor: int) -> Image.Image:
    if index >= len(frames):
        height, width = (side * factor for side in frames.shape[1:3])
        return Image.new("RGB", (width, height), (_MISSING,) * 3)
    return Image.fromarray(frames[index].repeat(factor, axis=0).repeat(factor, axis=1))
