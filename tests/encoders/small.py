"""Which encoders are small enough to test with?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from tests.models.small import CONFIG, MAE, make
from toto_robot.models.hub import save_pretrained
from toto_robot.models.mae import build_mae
from toto_robot.tokenizers.dvae import DVAE, DVAEConfig, frames_to_input, save_dvae

PX = CONFIG.image_px


def frames(count: int, px: int = PX, seed: int = 2) -> torch.Tensor:
    """Return uint8 frames (count, px, px, 3)."""
    return torch.randint(256, (count, px, px, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def save_toto(folder: Path, seed: int = 0, tokenizer_seed: int = 0) -> Path:
    """Write what a Toto pretraining writes: backbone, and the tokenizer beside it."""
    save_pretrained(make(seed=seed), folder)
    config = DVAEConfig(name="test", hidden=8, blocks_per_group=1, vocab=CONFIG.visual_vocab, decoder_init=8)
    tokenizer = DVAE(config, generator=torch.Generator().manual_seed(tokenizer_seed))
    with torch.no_grad():  # random logits favour a few codes; take their mean off
        tokenizer.encoder.blocks.output.conv.bias -= tokenizer.encoder(frames_to_input(frames(9))).mean(dim=(0, 2, 3))
    save_dvae(tokenizer, folder / "tokenizer")
    return folder


def save_mae(folder: Path, seed: int = 0) -> Path:
    """Write what an MAE pretraining writes."""
    save_pretrained(build_mae(replace(MAE, image_px=PX), seed=seed), folder)
    return folder
