"""What is a tokenizer?"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Tokenizer(Protocol):
    """Turns frames into a grid of codes and back, each frame on its own."""

    @property
    def vocab(self) -> int:
        """Number of codes."""
        ...

    @property
    def stride(self) -> int:
        """Side of the square of pixels that one code stands for."""
        ...

    def encode(self, images: Tensor) -> Tensor:
        """Map uint8 RGB (B, h, w, 3) to codes int64 (B, h / stride, w / stride); ValueError if h or w do not divide."""
        ...

    def decode(self, codes: Tensor) -> Tensor:
        """Map codes (B, h / stride, w / stride) to uint8 RGB (B, h, w, 3)."""
        ...

    def fingerprint(self) -> str:
        """Return a hash of everything that decides the codes: configuration and weights."""
        ...


def check_images(images: Tensor, stride: int) -> None:
    """Raise ValueError unless `images` are uint8 (B, h, w, 3) whose sides are multiples of `stride` pixels."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"expected uint8 images (B, h, w, 3), got {images.dtype} {tuple(images.shape)}")
    if images.shape[1] % stride or images.shape[2] % stride:
        raise ValueError(f"image sides must be multiples of {stride} px, got {tuple(images.shape[1:3])}")
