"""What did a camera see last, and can that be believed?

Whoever captures (the emulator's drawing process, `capture.py` for a device) puts frames into a mailbox; this end reads
the newest one at the size that the policy was trained with. A frame that is too old, black, or the same picture while
the arm moved is a fault: acting on it would be acting blind.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from deploy.drivers.base import Floats
from deploy.realtime.mailbox import Mailbox
from deploy.realtime.records import frame_dtype

_POLL_S = 0.02
_BLACK_MEAN, _BLACK_MAX = 4.0, 24  # of 255: what a covered lens or a dead sensor gives, noise included


class CameraFault(Exception):
    """A camera gives no picture that can be acted on; the message says which and why."""


@dataclass(frozen=True, kw_only=True)
class CameraSettings:
    """When a picture is not believed."""

    stale_s: float = 0.3  # age of the newest frame
    frozen_rad: float = 0.1  # joint motion during which a picture must change; a still scene may stay the same

    def __post_init__(self) -> None:
        """Refuse settings under which nothing or everything would be a fault."""
        if not self.stale_s > 0 or not self.frozen_rad > 0:
            raise ValueError(f"expected stale_s and frozen_rad above 0, got {self}")


@dataclass(frozen=True, eq=False)
class Frame:
    """One picture."""

    image: np.ndarray  # uint8 (h, w, 3) RGB
    capture_s: float
    number: int


class CameraReader:
    """Reads one camera's mailbox (h, w of the capturing side) at `image_size` square."""

    def __init__(self, name: str, path: Path, image_size: int, settings: CameraSettings, source: tuple[int, int]):
        self.name, self._size, self._settings = name, image_size, settings
        self._box = Mailbox(path, frame_dtype(*source))
        self._last: np.ndarray | None = None
        self._changed_at: Floats | None = None  # joint positions when the picture changed last

    def newest(self, q_rad: Floats) -> Frame:
        """Return the newest frame, the arm being at `q_rad` (7,); CameraFault for one that cannot be believed."""
        _, record = self._box.newest()
        age_s = time.monotonic() - float(record["capture_s"])
        if record["number"] == 0:
            raise CameraFault(f"camera {self.name} has given no frame yet")
        if age_s > self._settings.stale_s:
            raise CameraFault(f"camera {self.name}: the newest frame is {age_s:.2f} s old")
        image = record["image"]
        if image.max() <= _BLACK_MAX and image.mean() <= _BLACK_MEAN:
            raise CameraFault(f"camera {self.name} is black")
        self._check_frozen(image, q_rad)
        return Frame(fit(image, self._size), float(record["capture_s"]), int(record["number"]))

    def _check_frozen(self, image: np.ndarray, q_rad: Floats) -> None:
        if self._last is None or self._changed_at is None or not np.array_equal(image, self._last):
            self._last, self._changed_at = image, np.array(q_rad)
        elif np.abs(q_rad - self._changed_at).max() > self._settings.frozen_rad:
            raise CameraFault(f"camera {self.name} is frozen: the arm moved and the picture did not")

    def close(self) -> None:
        """Let go of the mailbox."""
        self._box.close()


def wait_for_first(places: Mapping[str, tuple[Path, tuple[int, int]]], timeout_s: float) -> None:
    """Wait until every camera's mailbox (name -> path, (height, width)) has a frame; CameraFault names those without.

    One deadline for all.
    """
    boxes = {name: Mailbox(path, frame_dtype(*size)) for name, (path, size) in places.items()}
    until_s = time.monotonic() + timeout_s
    while silent := [name for name, box in boxes.items() if box.newest()[0] == 0]:
        if time.monotonic() > until_s:
            raise CameraFault(
                f"no frame within {timeout_s:g} s from camera {', '.join(silent)}: is it connected, on a USB 3 port of "
                "its own, and does no other process hold it? `toto_robot deploy check cameras=[<name>=<source>]` looks"
            )
        time.sleep(_POLL_S)
    for box in boxes.values():
        box.close()


def fit(image: np.ndarray, size: int) -> np.ndarray:
    """Return the middle square of a picture (h, w, 3) at `size` pixels, averaged when it shrinks."""
    height, width = image.shape[:2]
    if height == width == size:
        return image
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = Image.fromarray(image[top : top + side, left : left + side])
    return np.asarray(square.resize((size, size), Image.Resampling.BOX if side >= size else Image.Resampling.BILINEAR))
