"""How does the baseline encode: MAE, or the same ViT at random weights?"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

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
from toto_robot.encoders.single_frame import FrameStream, SingleFrameEncoder
from toto_robot.models import hub
from toto_robot.models.mae import mae_config, mae_features, normalise_pixels
from toto_robot.weights import write_model

if TYPE_CHECKING:
    from transformers import ViTMAEForPreTraining


_BATCH = 64  # frames at a time: bounds the memory of a long clip


class MAEEncoder(SingleFrameEncoder):
    """Patch features of layers of a frozen MAE encoder, nothing masked (`Encoder`). It has no memory: W = 1."""

    def __init__(
        self, model: ViTMAEForPreTraining, *, name: str, layers: Sequence[int], device: torch.device,
        precision: str = "auto",
    ) -> None:  # fmt: skip
        config = mae_config(model)
        self.name, self.layers, self.device = name, check_layers(layers, config.layers), device
        self.width = config.width * len(layers)
        self.tokens_per_frame, self.image_px = config.tokens_per_frame, config.image_px
        self.precision = resolve_precision(precision, device)
        self.model = model.to(device).eval()
        self._fast_model = self.model
        if self.precision == "bf16":
            self._fast_model = copy.deepcopy(self.model)
            halve_matrices(self._fast_model)
        last = [model.vit.layernorm] if config.layers in layers else []
        parts = (model.vit.embeddings.patch_embeddings, *model.vit.layers[: max(layers)], *last)
        self.parameters = sum(p.numel() for part in parts for p in part.parameters())
        self.fingerprint = self._fingerprint()

    @torch.no_grad()
    def encode(self, frames: Frames) -> Tensor:
        """Encode frames (B, h, w, 3); return (B, P, D) float32."""
        fitted = fit_frames(frames, self.image_px, self.device).split(_BATCH)
        with autocast(self.precision, self.device):
            parts = [mae_features(self._fast_model, normalise_pixels(part), self.layers) for part in fitted]
        return torch.cat([concatenate(part, self.layers) for part in parts])

    def save(self, folder: Path) -> None:
        """Write the model."""
        hub.save_pretrained(self.model, folder)

    def settings(self) -> dict[str, object]:
        """Return the keyword arguments of `load_encoder` for a saved folder."""
        return {"layer": layer_setting(self.layers), "precision": self.precision}

    def _fingerprint(self) -> str:
        parts = {
            "model": hub.fingerprint(self.model), "layer": layer_setting(self.layers), "context_frames": 1,
            "preprocessing": PREPROCESSING + ", ImageNet mean and std", "precision": self.precision,
        }  # fmt: skip
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class NoEncoder:
    """No vision: features of width 0 (`Encoder`), for policies on proprioception alone (`none`) or that are told the
    simulator's state beside it (`state`, the oracle: what a policy reaches that sees everything).
    """

    width, tokens_per_frame, context_frames, parameters, precision = 0, 0, 1, 0, "fp32"
    layers: tuple[int, ...] = ()

    def __init__(self, name: str = "none", image_px: int = 64) -> None:
        self.name, self.image_px = name, image_px
        self.fingerprint = hashlib.sha256(name.encode()).hexdigest()

    def encode(self, frames: Frames) -> Tensor:
        """Return (B, 0, 0)."""
        return torch.zeros(len(frames), 0, 0)

    def encode_clip(self, frames: Frames) -> Tensor:
        """Return (B, T, 0, 0)."""
        return torch.zeros(*frames.shape[:2], 0, 0)

    def stream(self, batch: int) -> FrameStream:
        """Open a stream that returns (B, 0, 0)."""
        return FrameStream(self, batch)

    def save(self, folder: Path) -> None:
        """Write a config that holds the name."""
        write_model(Path(folder), {"model_type": self.name}, {})

    def settings(self) -> dict[str, object]:
        """Return the keyword arguments of `load_encoder` for a saved folder."""
        return {}
