"""How does anybody's frozen vision backbone encode frames?

A `Backbone` gives the patch tokens of its layers; what stands around it is here: preprocessing, precision, identity.
Backbones come from transformers (`hf_backbone.py`) and timm (`timm_backbone.py`), neither of which is imported before
it is asked for.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from toto_robot import weights
from toto_robot.encoders.base import (
    PREPROCESSING,
    Frames,
    autocast,
    check_layers,
    concatenate,
    fit_frames,
    halve_matrices,
    layer_setting,
    resolve_precision,
)
from toto_robot.encoders.single_frame import SingleFrameEncoder
from toto_robot.models.mae import IMAGENET_MEAN, IMAGENET_STD

_BATCH = 32  # frames at a time: bounds the memory of a long clip
Triple = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """What a backbone wants of a picture: a square of this size, of this mean and deviation by channel."""

    image_px: int
    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD

    def __post_init__(self) -> None:
        if self.image_px < 1 or len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError(f"expected a size, three means and three deviations above 0, got {self}")

    def normalise(self, images: Tensor) -> Tensor:
        """Map uint8 RGB (B, h, w, 3) to float32 (B, 3, h, w)."""
        mean = torch.tensor(self.mean, device=images.device).view(3, 1, 1)
        std = torch.tensor(self.std, device=images.device).view(3, 1, 1)
        return (images.permute(0, 3, 1, 2).float() / 255 - mean) / std


class Backbone(Protocol):
    """Somebody's network: the tokens of its layers."""

    kind: str  # "hf" or "timm": how a saved folder is read again
    module: nn.Module
    pixels: Pixels
    depth: int  # layers lie in 0..depth (0 = embedding)

    def features(self, pixels: Tensor, layers: Sequence[int]) -> dict[int, Tensor]:
        """Map normalised pixels (B, 3, h, w) to the patch tokens (B, P, D) of layers."""
        ...

    def cut(self, deepest: int) -> Backbone:
        """Return a copy of its own without what lies above layer `deepest`, where that can be told."""
        ...

    def describe(self) -> dict[str, Any]:
        """Return its configuration as JSON holds it."""
        ...

    def save(self, folder: Path) -> None:
        """Write what its loader needs."""
        ...


class VisionEncoder(SingleFrameEncoder):
    """Patch tokens of layers of a frozen vision backbone (`Encoder`). It has no memory: W = 1.

    Layer l is what block l leaves (0 the embedding); the last passes the final norm too, where there is one. CLS and
    register tokens are dropped: heads look at places.
    """

    def __init__(
        self, backbone: Backbone, *, layers: Sequence[int], device: torch.device, precision: str = "auto"
    ) -> None:
        self.name, self.device = backbone.kind, device
        self.layers = check_layers(layers, backbone.depth)
        self.image_px = backbone.pixels.image_px
        self.precision = resolve_precision(precision, device)
        backbone.module.to(device).eval()
        self.backbone = backbone
        self._fast = backbone.cut(max(self.layers))
        self.parameters = sum(parameter.numel() for parameter in self._fast.module.parameters())
        if self.precision == "bf16":
            halve_matrices(self._fast.module)
        self.tokens_per_frame, self.width = self._sizes()
        self.fingerprint = self._fingerprint()

    @torch.no_grad()
    def encode(self, frames: Frames) -> Tensor:
        """Encode frames (B, h, w, 3); return (B, P, D) float32."""
        fitted = fit_frames(frames, self.image_px, self.device).split(_BATCH)
        with autocast(self.precision, self.device):
            parts = [self._fast.features(self.backbone.pixels.normalise(part), self.layers) for part in fitted]
        return torch.cat([concatenate(part, self.layers) for part in parts])

    def save(self, folder: Path) -> None:
        """Write the backbone and what it wants of a picture."""
        self.backbone.save(Path(folder))

    def settings(self) -> dict[str, object]:
        """Return the keyword arguments of `load_encoder` for a saved folder."""
        return {"layer": layer_setting(self.layers), "precision": self.precision}

    def _sizes(self) -> tuple[int, int]:
        """Return tokens of a frame and their width, by trying."""
        black = torch.zeros(1, self.image_px, self.image_px, 3, dtype=torch.uint8)
        try:
            tokens = self.encode(black)
        except RuntimeError as error:  # layers of different grids cannot stand side by side
            raise ValueError(
                f"{self.name}: layers {self.layers} cannot be read at {self.image_px} px: {error}"
            ) from error
        return tokens.shape[1], tokens.shape[2]

    def _fingerprint(self) -> str:
        parts = {
            "model": weights.fingerprint(self.backbone.describe(), self.backbone.module.state_dict()),
            "layer": layer_setting(self.layers), "pixels": asdict(self.backbone.pixels),
            "preprocessing": PREPROCESSING, "precision": self.precision,
        }  # fmt: skip
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def patch_tokens(hidden: Tensor, patches: int | None) -> Tensor:
    """Return the patch tokens (B, P, D) in raster order of a hidden state (B, N, D) or a feature map (B, D, h, w).

    `patches`: how many the network makes of a picture, where it says so; what stands before them (CLS, registers) is
    dropped. Without it, N is a square or one more. ValueError where neither is so.
    """
    if hidden.ndim == 4:
        return hidden.flatten(2).transpose(1, 2)
    if hidden.ndim != 3:
        raise ValueError(f"expected hidden states (B, N, D) or feature maps (B, D, h, w), got {tuple(hidden.shape)}")
    found = hidden.shape[1]
    if patches is not None and found >= patches:
        return hidden[:, found - patches :]
    for extra in (0, 1):
        if math.isqrt(found - extra) ** 2 == found - extra:
            return hidden[:, extra:]
    raise ValueError(f"cannot tell the patches among {found} tokens: neither a square nor one more")


def cut_blocks(module: nn.Module, depth: int, deepest: int) -> nn.Module:
    """Return a copy of a network whose list of `depth` blocks ends after `deepest`; whole where there is no such list.

    Lists within a block or a stage do not count, whatever their length.
    """
    copied = copy.deepcopy(module)
    lists = [
        path
        for path, part in copied.named_modules()
        if isinstance(part, nn.ModuleList | nn.Sequential) and len(part) == depth and not re.search(r"\d", path)
    ]
    if len(lists) == 1 and deepest < depth:
        parent, _, name = lists[0].rpartition(".")
        setattr(copied.get_submodule(parent), name, copied.get_submodule(lists[0])[:deepest])  # type: ignore[index]
    return copied


def read_pixels(stored: Mapping[str, Any], image_px: int | None = None) -> Pixels:
    """Read what `asdict` and JSON have made of a Pixels."""
    size = stored["image_px"] if image_px is None else image_px
    return Pixels(image_px=size, mean=tuple(stored["mean"]), std=tuple(stored["std"]))
