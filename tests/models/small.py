"""Which models are small enough to test with?"""

from __future__ import annotations

import torch

from toto_robot.models.mae import MAEConfig
from toto_robot.models.toto import Toto, TotoConfig

CONFIG = TotoConfig(
    name="test", visual_vocab=20, width=32, layers=4, heads=2, ffn_width=48, tokens_per_frame=4, frames=8,
    context_frames=3, image_px=16,
)  # fmt: skip

MAE = MAEConfig(
    name="test", image_px=16, patch_px=8, width=16, layers=2, heads=2, ffn_width=24, decoder_width=8, decoder_layers=1,
    decoder_heads=2, decoder_ffn_width=16,
)  # fmt: skip


def make(config: TotoConfig = CONFIG, seed: int = 0) -> Toto:
    """Return a model whose attention is far from uniform: weights six times the usual, so that errors show."""
    model = Toto(config, generator=torch.Generator().manual_seed(seed)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6)
    return model


def codes(batch: int, frames: int, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(CONFIG.visual_vocab, (batch, frames, CONFIG.tokens_per_frame), generator=generator)
