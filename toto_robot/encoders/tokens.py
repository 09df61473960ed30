"""How does a tokenizer encode on its own: what each code means to its decoder, and no backbone?

The row of a VQGAN is its codebook's. A dVAE has no codebook: a code is a one-hot that meets the decoder's first 1x1
convolution, so the code's column there is what it means. This is the control that says what a backbone adds to its
tokens.
"""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toto_robot.encoders.base import PREPROCESSING, Frames, autocast, fit_frames, halve_matrices, resolve_precision
from toto_robot.encoders.single_frame import SingleFrameEncoder
from toto_robot.tokenizers.load import AnyTokenizer, save_tokenizer
from toto_robot.tokenizers.vqgan import VQGAN

CODES_A_SIDE = 8  # of a frame, where image_px is not given
_BATCH = 64  # frames at a time: bounds the memory of a long clip


class TokenEncoder(SingleFrameEncoder):
    """The table row of every code of a frame (`Encoder`); frozen, without memory, one layer."""

    layers: tuple[int, ...] = (0,)

    def __init__(
        self, tokenizer: AnyTokenizer, *, image_px: int | None, device: torch.device, precision: str = "auto"
    ) -> None:
        image_px = CODES_A_SIDE * tokenizer.stride if image_px is None else image_px
        if image_px < 1 or image_px % tokenizer.stride:
            raise ValueError(f"image_px must be a multiple of the tokenizer's {tokenizer.stride} px, got {image_px}")
        self.name = "vqgan" if isinstance(tokenizer, VQGAN) else "dvae"
        self.image_px, self.device = image_px, device
        self.tokens_per_frame = (image_px // tokenizer.stride) ** 2
        self.precision = resolve_precision(precision, device)
        self.tokenizer = tokenizer.to(device).eval()
        self._fast_tokenizer = self.tokenizer
        if self.precision == "bf16":
            self._fast_tokenizer = copy.deepcopy(self.tokenizer)
            for part in self._fast_tokenizer.trunk:  # what decides between codes stays float32
                halve_matrices(part)
        self.table = code_table(self.tokenizer)  # (V, D)
        self.width = self.table.shape[1]
        passed = (*tokenizer.trunk, *tokenizer.choice)
        self.parameters = sum(p.numel() for part in passed for p in part.parameters())
        if self.name == "dvae":  # a VQGAN's table is part of its choice
            self.parameters += self.table.numel()
        self.fingerprint = self._fingerprint()

    @torch.no_grad()
    def encode(self, frames: Frames) -> Tensor:
        """Encode frames (B, h, w, 3); return (B, P, D) float32."""
        fitted = fit_frames(frames, self.image_px, self.device)
        with autocast(self.precision, self.device):
            codes = torch.cat([self._fast_tokenizer.encode(part).flatten(1) for part in fitted.split(_BATCH)])
        return F.embedding(codes, self.table)

    def save(self, folder: Path) -> None:
        """Write the tokenizer."""
        save_tokenizer(self.tokenizer, folder)

    def settings(self) -> dict[str, object]:
        """Return the keyword arguments of `load_encoder` for a saved folder."""
        return {"image_px": self.image_px, "precision": self.precision}

    def _fingerprint(self) -> str:
        parts = {
            "tokenizer": self.tokenizer.fingerprint(), "features": "code table", "image_px": self.image_px,
            "preprocessing": PREPROCESSING, "precision": self.precision,
        }  # fmt: skip
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@torch.no_grad()
def code_table(tokenizer: AnyTokenizer) -> Tensor:
    """Return what each code means to the decoder, (V, D) float32."""
    if isinstance(tokenizer, VQGAN):
        return tokenizer.quantize.embedding.weight.detach().float()
    first = tokenizer.decoder.blocks[0]
    assert isinstance(first, nn.Conv2d)
    return first.weight[:, :, 0, 0].T.float().contiguous()
