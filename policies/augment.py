"""How do the pictures of an episode change between variants that a head is trained on: shifted, brighter, duller?"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class ImageChange:
    """One variant of every episode. An episode has the same change in all its frames: the camera stands elsewhere."""

    variant: int  # 1, 2, ...: what is drawn for an episode follows from this, its number and the camera
    shift_px: int  # largest shift, rows and columns, in pixels of the stored pictures
    brightness: float  # largest relative change of brightness
    contrast: float  # largest relative change of contrast

    @property
    def key(self) -> str:
        """A name for the cache: two changes of one name draw the same."""
        return f"shift{self.shift_px}-brightness{self.brightness:g}-contrast{self.contrast:g}-{self.variant}"

    def __call__(self, images: np.ndarray, camera: str, episode: int) -> np.ndarray:
        """Return the changed pictures of an episode, uint8 (T, h, w, 3)."""
        generator = np.random.default_rng([self.variant, episode, zlib.crc32(camera.encode())])
        rows, columns = generator.integers(-self.shift_px, self.shift_px + 1, size=2)
        brightness = 1 + generator.uniform(-self.brightness, self.brightness)
        contrast = 1 + generator.uniform(-self.contrast, self.contrast)
        return _shine(_shift(images, int(rows), int(columns)), brightness, contrast)


def _shift(images: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Move pictures down and right; the border is repeated into the gap."""
    down = np.clip(np.arange(images.shape[1]) - rows, 0, images.shape[1] - 1)
    right = np.clip(np.arange(images.shape[2]) - columns, 0, images.shape[2] - 1)
    return images[:, down[:, None], right]


def _shine(images: np.ndarray, brightness: float, contrast: float) -> np.ndarray:
    """Scale brightness, then the distance from the mean grey of the first picture."""
    # Every byte has one answer, so 256 are computed: the same to the bit as on the pictures, and forty times faster.
    grey = float(images[0].mean()) * brightness
    table = (np.arange(256, dtype=np.float64) * brightness - grey) * contrast + grey
    return np.clip(np.rint(table), 0, 255).astype(np.uint8)[images]
