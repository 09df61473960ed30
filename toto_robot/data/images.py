"""How does a picture file become square uint8 RGB, and which files are refused, with what reason?

As frames of videos: upright (EXIF), the shorter side resized by area averaging, the centre square.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from toto_robot.data.video import BadVideo, Frame, refuse_special, resize_square

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
# What such files hold, whatever their names say; Pillow reads further formats, some of them by starting programs.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
MAX_PIXELS = 89_478_485  # Pillow's own line between a picture and a decompression bomb: 256 MiB of RGB


def decode_image(path: Path, size_px: int) -> Frame:
    """Return a picture as (size_px, size_px, 3); BadVideo with the reason where it cannot be used.

    Colour tables and CMYK become RGB, transparency is dropped, 16-bit grey keeps its upper 8 bits; of an animation the
    first picture is taken.
    """
    refuse_special(path)
    try:
        with Image.open(path, formats=_FORMATS) as picture:
            width, height = picture.size
            if width * height > MAX_PIXELS:
                raise BadVideo(f"would unpack to {width} x {height} pixels, more than {MAX_PIXELS}: refused as a bomb")
            return resize_square(_rgb(ImageOps.exif_transpose(picture)), size_px)
    except BadVideo:
        raise
    except Image.DecompressionBombError as error:
        raise BadVideo(f"would unpack to more than {MAX_PIXELS} pixels: refused as a bomb") from error
    except Exception as error:  # Pillow's decoders raise a dozen kinds on damaged files, SyntaxError among them
        raise BadVideo(f"cannot be read as a picture ({getattr(error, 'strerror', None) or _why(error)})") from error


def _rgb(picture: Image.Image) -> Frame:
    if picture.mode.startswith("I"):  # 16 bits; `convert` would cut off at 255
        grey = (np.asarray(picture).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    return np.asarray(picture.convert("RGB"))


def _why(error: Exception) -> str:
    """Return the reason without the path: Pillow quotes it."""
    if isinstance(error, UnidentifiedImageError):
        return "no picture in a known format"
    return str(error) or type(error).__name__
