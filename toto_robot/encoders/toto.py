"""How does Toto encode robot video: tokenizer, backbone up to a layer, and the ring of past frames?"""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path

import torch
from torch import Tensor

from toto_robot.encoders.base import (
    PREPROCESSING,
    Frames,
    autocast,
    fit_frames,
    halve_matrices,
    resolve_precision,
)
from toto_robot.models import hub
from toto_robot.models.toto import Toto
from toto_robot.tokenizers.load import AnyTokenizer, save_tokenizer

_BATCH = 64  # frames at a time: bounds the memory of a long clip


class TotoEncoder:
    """Features of one layer of a frozen Toto (`Encoder`).

    `context_frames` 1 encodes each frame alone. The pass stops at `layer`, so deeper blocks cost nothing.
    """

    def __init__(
        self, model: Toto, tokenizer: AnyTokenizer, *, name: str, layer: int, context_frames: int, device: torch.device,
        precision: str = "auto",
    ) -> None:  # fmt: skip
        config = model.config
        if not 0 <= layer <= config.layers:
            raise ValueError(f"layer must lie in 0..{config.layers} (0 = embedding), got {layer}")
        if not 1 <= context_frames <= config.context_frames:
            raise ValueError(f"context_frames must lie in 1..{config.context_frames} (trained), got {context_frames}")
        if tokenizer.vocab != config.visual_vocab:
            raise ValueError(f"the tokenizer has {tokenizer.vocab} codes, the backbone {config.visual_vocab}")
        if (config.image_px // tokenizer.stride) ** 2 != config.tokens_per_frame:
            raise ValueError(f"{config.image_px} px, stride {tokenizer.stride}: not {config.tokens_per_frame} tokens")
        self.name, self.layer, self.context_frames, self.device = name, layer, context_frames, device
        self.width, self.tokens_per_frame, self.image_px = config.width, config.tokens_per_frame, config.image_px
        self.precision = resolve_precision(precision, device)
        self.model, self.tokenizer = model.to(device).eval(), tokenizer.to(device).eval()
        self._fast_model, self._fast_tokenizer = self.model, self.tokenizer
        if self.precision == "bf16":
            self._fast_model, self._fast_tokenizer = _half_copy(self.model, self.tokenizer)
        passed = (*tokenizer.trunk, *tokenizer.choice, self.model.embed, *self.model.blocks[:layer])
        self.parameters = sum(p.numel() for part in passed for p in part.parameters())
        self.fingerprint = self._fingerprint()

    @torch.no_grad()
    def codes(self, frames: Frames) -> Tensor:
        """Return the tokens (B, P) int64 of frames (B, h, w, 3)."""
        fitted = fit_frames(frames, self.image_px, self.device)
        with autocast(self.precision, self.device):
            parts = [self._fast_tokenizer.encode(part).flatten(1) for part in fitted.split(_BATCH)]
        return torch.cat(parts)

    @torch.no_grad()
    def encode(self, frames: Frames) -> Tensor:
        """Encode single frames (B, h, w, 3), each as the first of a video; return (B, P, D) float32."""
        return self.encode_codes(self.codes(frames))

    @torch.no_grad()
    def encode_codes(self, codes: Tensor) -> Tensor:
        """Encode tokens (B, P) of single frames; return (B, P, D) float32."""
        ids, _ = self.model.config.pack(codes[:, None].to(self.device))
        with autocast(self.precision, self.device):
            parts = [self._fast_model(part, layers=(self.layer,), logits=False) for part in ids.split(_BATCH)]
        return torch.cat([part.features[self.layer][:, 1:].float() for part in parts])

    @torch.no_grad()
    def encode_clip(self, frames: Frames) -> Tensor:
        """Encode clips (B, T, h, w, 3) by the code a stream runs; return (B, T, P, D) float32."""
        B, T = frames.shape[:2]
        codes = self.codes(frames.reshape(B * T, *frames.shape[2:]))  # (B * T, P)
        if self.context_frames == 1:
            return self.encode_codes(codes).unflatten(0, (B, T))
        stream = self.stream(B)
        return torch.stack([stream.step_codes(now) for now in codes.unflatten(0, (B, T)).unbind(1)], dim=1)

    def stream(self, batch: int) -> TotoStream:
        """Open a stream of `batch` rows."""
        return TotoStream(self, self._fast_model, batch)

    def save(self, folder: Path) -> None:
        """Write backbone and tokenizer, the layout of a pretrained model."""
        hub.save_pretrained(self.model, folder)
        save_tokenizer(self.tokenizer, Path(folder) / "tokenizer")

    def settings(self) -> dict[str, object]:
        """Return the keyword arguments of `load_encoder` for a saved folder."""
        return {"layer": self.layer, "context_frames": self.context_frames, "precision": self.precision}

    def _fingerprint(self) -> str:
        parts = {
            "backbone": hub.fingerprint(self.model), "tokenizer": self.tokenizer.fingerprint(), "layer": self.layer,
            "context_frames": self.context_frames, "preprocessing": PREPROCESSING, "precision": self.precision,
        }  # fmt: skip
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class TotoStream:
    """A running video a row, on the ring of past frames (`Stream`)."""

    def __init__(self, encoder: TotoEncoder, model: Toto, batch: int) -> None:
        self._encoder, self._model, self._batch = encoder, model, batch
        with autocast(encoder.precision, encoder.device):
            self._ring = model.ring(batch, layers=encoder.layer, context_frames=encoder.context_frames)

    def step(self, frames: Frames, reset: Frames | None = None) -> Tensor:
        """Take the next frame of every row (B, h, w, 3); return features (B, P, D) float32."""
        return self.step_codes(self._encoder.codes(frames), reset)

    @torch.no_grad()
    def step_codes(self, codes: Tensor, reset: Frames | None = None) -> Tensor:
        """Take the next frame's tokens (B, P); `reset` (B,) boolean as in `Stream.step`."""
        encoder = self._encoder
        if reset is not None:
            rows = torch.as_tensor(reset, device=encoder.device)
            if rows.shape != (self._batch,) or rows.dtype != torch.bool:
                raise ValueError(f"reset must be boolean ({self._batch},), got {rows.dtype} {tuple(rows.shape)}")
            self._ring.reset(rows)
        ids = codes.to(encoder.device) + self._model.config.first_visual_id
        with autocast(encoder.precision, encoder.device):
            output = self._model(ids, layers=(encoder.layer,), logits=False, cache=self._ring)
        return output.features[encoder.layer].float()


def _half_copy(model: Toto, tokenizer: AnyTokenizer) -> tuple[Toto, AnyTokenizer]:
    """Return copies whose matrices are bf16; what decides between codes in the tokenizer stays float32."""
    fast, fast_tokenizer = copy.deepcopy(model), copy.deepcopy(tokenizer)
    halve_matrices(fast)
    for part in fast_tokenizer.trunk:
        halve_matrices(part)
    return fast, fast_tokenizer
