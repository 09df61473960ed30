"""What is a tokenizer?"""

from __future__ import annotations

from typing import Protocol

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
