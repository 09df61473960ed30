"""Pictures as strangers have them."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from make_video import picture
from PIL import Image


def make_picture(path: Path, index: int = 10, width: int = 160, height: int = 96, **options: object) -> Path:
    """Write the quartered picture of make_video (red, green, blue, grey) in the format of its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(index, width, height)).save(path, **options)
    return path


def make_bomb(path: Path, side: int) -> Path:
    """Write a PNG of a few kB that says it is side x side pixels: its header, and rows that end too early."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    rows = zlib.compress(np.zeros(200_000, np.uint8).tobytes(), 9)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))
    return path
