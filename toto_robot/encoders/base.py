"""What is an encoder: uint8 frames in, features of every patch out, one frame at a time or as a stream?"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import torch
from torch import Tensor, nn

Frames = np.ndarray | Tensor  # uint8 RGB (..., h, w, 3)


class Stream(Protocol):
    """One running video a row."""

    def step(self, frames: Frames, reset: Frames | None = None) -> Tensor:
        """Take the next frame of every row, uint8 (B, h, w, 3); return features (B, P, D) float32.

        `reset` (B,) boolean: these rows start a new video with this frame. The first step starts all.
        """
        ...


class Encoder(Protocol):
    """A frozen model that turns frames into features. Frames of another size are resized inside (`fit_frames`)."""

    name: str
    width: int  # D, of all layers together; 0 for `none`
    tokens_per_frame: int  # P; 0 for `none`
    image_px: int  # the size it wants: give it that and nothing is resized
    layers: tuple[int, ...]  # whose outputs, side by side on the width axis; 0 = embedding, else a block
    context_frames: int  # frames a stream looks back on, the current one included
    parameters: int  # weights that a frame passes through
    precision: str  # "fp32" or "bf16"
    fingerprint: str  # hash of weights and of all that decides features: layers, context, preprocessing, precision

    def encode(self, frames: Frames) -> Tensor:
        """Encode single frames (B, h, w, 3), each as the first of a video; return (B, P, D) float32."""
        ...

    def encode_clip(self, frames: Frames) -> Tensor:
        """Encode clips (B, T, h, w, 3) as a stream would; return (B, T, P, D) float32."""
        ...

    def stream(self, batch: int) -> Stream:
        """Open a stream of `batch` rows."""
        ...

    def save(self, folder: Path) -> None:
        """Write everything `load_encoder(folder, **settings())` needs to make this encoder again."""
        ...

    def settings(self) -> dict[str, object]:
        """Return the keyword arguments of `load_encoder` that, with a saved folder, make this encoder again."""
        ...


PREPROCESSING = "shorter side to image_px with cv2 (AREA down, LINEAR up), centre crop"


def fit_frames(frames: Frames, image_px: int, device: torch.device) -> Tensor:
    """Return uint8 frames (B, image_px, image_px, 3) on `device`; raises ValueError for another shape or dtype.

    Frames of another size have their shorter side resized (cv2 INTER_AREA down, INTER_LINEAR up) and are cropped to the
    centre, as the videos were that the tokenizer was trained on.
    """
    tensor = torch.as_tensor(frames)
    if tensor.dtype != torch.uint8 or tensor.ndim != 4 or tensor.shape[-1] != 3:
        raise ValueError(f"expected uint8 RGB frames (B, h, w, 3), got {tensor.dtype} {tuple(tensor.shape)}")
    if tuple(tensor.shape[1:3]) != (image_px, image_px):
        resized = [_resize(frame, image_px) for frame in tensor.cpu().numpy()]
        tensor = torch.from_numpy(np.stack(resized)) if resized else tensor.new_zeros(0, image_px, image_px, 3)
    return tensor.to(device, non_blocking=True)


def _resize(frame: np.ndarray, image_px: int) -> np.ndarray:
    h, w = frame.shape[:2]
    scale = image_px / min(h, w)
    size = (max(image_px, round(w * scale)), max(image_px, round(h * scale)))
    fitted = cv2.resize(frame, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    top, left = (size[1] - image_px) // 2, (size[0] - image_px) // 2
    return fitted[top : top + image_px, left : left + image_px]


def check_layers(layers: Sequence[int], deepest: int) -> tuple[int, ...]:
    """Return `layers` as a tuple; ValueError unless there are some, all different, all in 0..deepest."""
    if not layers or len(set(layers)) < len(layers) or not all(0 <= layer <= deepest for layer in layers):
        found = layer_setting(layers)
        raise ValueError(f"layer must lie in 0..{deepest} (0 = embedding), or be several different ones, got {found}")
    return tuple(layers)


def layer_setting(layers: Sequence[int]) -> int | list[int]:
    """Return layers as `load_encoder` and JSON take them: the number of one, the list of several."""
    return layers[0] if len(layers) == 1 else list(layers)


def concatenate(features: Mapping[int, Tensor], layers: Sequence[int]) -> Tensor:
    """Put the features (B, P, D) of layers side by side on the width axis, in this order, as float32."""
    return torch.cat([features[layer].float() for layer in layers], dim=-1)


def resolve_precision(precision: str, device: torch.device) -> str:
    """Return "bf16" or "fp32" for "auto", "bf16" or "fp32"; auto is bf16 where the hardware multiplies it."""
    if precision not in ("auto", "bf16", "fp32"):
        raise ValueError(f'precision must be "auto", "bf16" or "fp32", got {precision!r}')
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    # On a CPU without these instructions bf16 is emulated, and slower than float32.
    return "bf16" if torch.cpu.get_capabilities().get("avx512_bf16") else "fp32"


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Return the autocast of a precision on a device."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def halve_matrices(module: nn.Module) -> nn.Module:
    """Cast linear and conv weights to bf16 in place, for use under autocast: same numbers, no cast every call."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.to(torch.bfloat16)
    return module
