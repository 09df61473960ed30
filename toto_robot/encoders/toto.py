"""How does Toto encode robot video: tokenizer, backbone up to the deepest layer asked for, memory of past frames?"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

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
from toto_robot.models import hub
from toto_robot.models.cuda_graph import CudaGraph
from toto_robot.models.streaming import check_policy, open_stream
from toto_robot.models.surprise import SurpriseStream
from toto_robot.models.toto import Toto
from toto_robot.tokenizers.load import AnyTokenizer, save_tokenizer

_BATCH = 64  # frames at a time: bounds the memory of a long clip


class TotoEncoder:
    """Features of layers of a frozen Toto (`Encoder`).

    `context_frames` 1 encodes each frame alone. The pass stops at the deepest layer, so what lies above costs nothing.
    `streaming` is how frames beyond `context_frames` are met, one of `models.streaming.POLICIES`.
    """

    def __init__(
        self, model: Toto, tokenizer: AnyTokenizer, *, name: str, layers: Sequence[int], context_frames: int,
        device: torch.device, precision: str = "auto", streaming: str = "ring",
    ) -> None:  # fmt: skip
        config = model.config
        config.check_context(context_frames)
        check_policy(streaming)
        if tokenizer.vocab != config.visual_vocab:
            raise ValueError(f"the tokenizer has {tokenizer.vocab} codes, the backbone {config.visual_vocab}")
        if (config.image_px // tokenizer.stride) ** 2 != config.tokens_per_frame:
            raise ValueError(f"{config.image_px} px, stride {tokenizer.stride}: not {config.tokens_per_frame} tokens")
        self.name, self.layers, self.device = name, check_layers(layers, config.layers), device
        self.context_frames, self.streaming = context_frames, streaming
        self.width = config.width * len(layers)
        self.tokens_per_frame, self.image_px = config.tokens_per_frame, config.image_px
        self.precision = resolve_precision(precision, device)
        self.model, self.tokenizer = model.to(device).eval(), tokenizer.to(device).eval()
        self._fast_model, self._fast_tokenizer = self.model, self.tokenizer
        if self.precision == "bf16":
            self._fast_model, self._fast_tokenizer = _half_copy(self.model, self.tokenizer)
        passed = (*tokenizer.trunk, *tokenizer.choice, self.model.embed, *self.model.blocks[: max(layers)])
        self.parameters = sum(p.numel() for part in passed for p in part.parameters())
        self.fingerprint = self._fingerprint()

    @torch.no_grad()
    def codes(self, frames: Frames) -> Tensor:
        """Return the tokens (B, P) int64 of frames (B, h, w, 3)."""
        return self.fitted_codes(fit_frames(frames, self.image_px, self.device))

    @torch.no_grad()
    def fitted_codes(self, frames: Tensor) -> Tensor:
        """Return the tokens (B, P) int64 of what `fit_frames` returned."""
        with autocast(self.precision, self.device):
            parts = [self._fast_tokenizer.encode(part).flatten(1) for part in frames.split(_BATCH)]
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
            parts = [self._fast_model(part, layers=self.layers, logits=False) for part in ids.split(_BATCH)]
        return torch.cat([concatenate(part.features, self.layers)[:, 1:] for part in parts])

    @torch.no_grad()
    def encode_clip(self, frames: Frames) -> Tensor:
        """Encode clips (B, T, h, w, 3) by the code a stream runs; return (B, T, P, D) float32."""
        B, T = frames.shape[:2]
        codes = self.codes(frames.reshape(B * T, *frames.shape[2:]))  # (B * T, P)
        if self.context_frames == 1:
            return self.encode_codes(codes).unflatten(0, (B, T))
        stream = self.stream(B)
        return torch.stack([stream.step_codes(now) for now in codes.unflatten(0, (B, T)).unbind(1)], dim=1)

    def stream(self, batch: int, *, cuda_graph: bool = False) -> TotoStream:
        """Open a stream of `batch` rows; with `cuda_graph` a step is recorded once and replayed, on a GPU only."""
        return TotoStream(self, self._fast_model, batch, cuda_graph)

    @torch.no_grad()
    def surprise_stream(self, batch: int, context_frames: int) -> SurpriseStream:
        """Open a stream that measures surprise, with a memory of its own; call it by `surprise`."""
        with autocast(self.precision, self.device):
            return SurpriseStream(self._fast_model, batch, context_frames)

    def surprise(self, stream: SurpriseStream, codes: Tensor, restart: Tensor | None = None) -> Tensor:
        """Return the nats (B, P) of tokens (B, P), the next frame of every row of the stream."""
        with autocast(self.precision, self.device):
            return stream.step(codes, restart)

    def save(self, folder: Path) -> None:
        """Write backbone and tokenizer, the layout of a pretrained model."""
        hub.save_pretrained(self.model, folder)
        save_tokenizer(self.tokenizer, Path(folder) / "tokenizer")

    def settings(self) -> dict[str, object]:
        """Return the keyword arguments of `load_encoder` for a saved folder."""
        return {
            "layer": layer_setting(self.layers), "context_frames": self.context_frames, "precision": self.precision,
            "streaming": self.streaming,
        }  # fmt: skip

    def _fingerprint(self) -> str:
        parts = {
            "backbone": hub.fingerprint(self.model), "tokenizer": self.tokenizer.fingerprint(),
            "layer": layer_setting(self.layers), "context_frames": self.context_frames,
            "preprocessing": PREPROCESSING, "precision": self.precision,
        }  # fmt: skip
        if self.streaming != "ring":  # the hashes of bundles and caches from before there was a choice stay
            parts["streaming"] = self.streaming
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class TotoStream:
    """A running video a row (`Stream`), by the encoder's streaming policy."""

    def __init__(self, encoder: TotoEncoder, model: Toto, batch: int, cuda_graph: bool) -> None:
        self._encoder, self._batch, self._first_visual_id = encoder, batch, model.config.first_visual_id
        with autocast(encoder.precision, encoder.device):
            self._stream = open_stream(
                encoder.streaming, model, batch, layers=encoder.layers, context_frames=encoder.context_frames,
                fixed_shapes=cuda_graph,
            )  # fmt: skip
        self._started = False
        self.codes: Tensor | None = None  # (B, P) of the newest frames
        self._tokenize: Callable[[Tensor], Tensor] = encoder.fitted_codes
        self._advance: Callable[[Tensor, Tensor], Tensor] = self._features
        if cuda_graph:
            px, device = encoder.image_px, encoder.device
            self._tokenize = CudaGraph(
                encoder.fitted_codes, torch.zeros(batch, px, px, 3, dtype=torch.uint8, device=device)
            )
            codes = torch.zeros(batch, encoder.tokens_per_frame, dtype=torch.long, device=device)
            self._advance = CudaGraph(self._features, codes, torch.ones(batch, dtype=torch.bool, device=device))

    def step(self, frames: Frames, reset: Frames | None = None) -> Tensor:
        """Take the next frame of every row (B, h, w, 3); return features (B, P, D) float32."""
        encoder = self._encoder
        if len(frames) != self._batch:
            raise ValueError(f"the stream has {self._batch} rows, got {len(frames)} frames")
        return self.step_codes(self._tokenize(fit_frames(frames, encoder.image_px, encoder.device)), reset)

    def step_codes(self, codes: Tensor, reset: Frames | None = None) -> Tensor:
        """Take the next frame's tokens (B, P); `reset` (B,) boolean as in `Stream.step`."""
        restart = torch.full((self._batch,), not self._started, device=self._encoder.device)
        if reset is not None:
            rows = torch.as_tensor(reset, device=restart.device)
            if rows.shape != restart.shape or rows.dtype != torch.bool:
                raise ValueError(f"reset must be boolean ({self._batch},), got {rows.dtype} {tuple(rows.shape)}")
            restart |= rows
        self._started, self.codes = True, codes
        features = self._advance(codes.to(restart.device), restart)
        return features.clone() if isinstance(self._advance, CudaGraph) else features  # a graph writes over its last

    @torch.no_grad()
    def _features(self, codes: Tensor, restart: Tensor) -> Tensor:
        encoder = self._encoder
        with autocast(encoder.precision, encoder.device):
            features = self._stream.step(codes + self._first_visual_id, restart)
        return concatenate(features, encoder.layers)


def _half_copy(model: Toto, tokenizer: AnyTokenizer) -> tuple[Toto, AnyTokenizer]:
    """Return copies whose matrices are bf16; what decides between codes in the tokenizer stays float32."""
    fast, fast_tokenizer = copy.deepcopy(model), copy.deepcopy(tokenizer)
    halve_matrices(fast)
    for part in fast_tokenizer.trunk:
        halve_matrices(part)
    return fast, fast_tokenizer
