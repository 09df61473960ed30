"""How does an encoder without memory serve clips and streams: each frame on its own?"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from toto_robot.encoders.base import Frames


class _Encodes(Protocol):
    def encode(self, frames: Frames) -> Tensor: ...


class SingleFrameEncoder:
    """The part of `Encoder` that follows from `encode` where frames do not know each other. W = 1."""

    context_frames = 1

    def encode(self, frames: Frames) -> Tensor:
        """Encode frames (B, h, w, 3); return (B, P, D) float32."""
        raise NotImplementedError

    def encode_clip(self, frames: Frames) -> Tensor:
        """Encode clips (B, T, h, w, 3) frame by frame; return (B, T, P, D) float32."""
        B, T = frames.shape[:2]
        return self.encode(frames.reshape(B * T, *frames.shape[2:])).unflatten(0, (B, T))

    def stream(self, batch: int) -> FrameStream:
        """Open a stream of `batch` rows."""
        return FrameStream(self, batch)


class FrameStream:
    """The stream of such an encoder: nothing to reset (`Stream`)."""

    def __init__(self, encoder: _Encodes, batch: int) -> None:
        self._encoder, self._batch = encoder, batch

    def step(self, frames: Frames, reset: Frames | None = None) -> Tensor:
        """Encode the next frame of every row (B, h, w, 3); return (B, P, D) float32."""
        if len(frames) != self._batch:
            raise ValueError(f"the stream has {self._batch} rows, got {len(frames)} frames")
        return self._encoder.encode(frames)
