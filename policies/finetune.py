"""How does an encoder learn with the head: which of its weights, and how do they come back as an encoder?"""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from toto_robot.encoders.base import Encoder, autocast, concatenate, fit_frames
from toto_robot.encoders.load import load_encoder
from toto_robot.encoders.mae import MAEEncoder
from toto_robot.encoders.toto import TotoEncoder
from toto_robot.models.mae import mae_features, normalise_pixels

MODES = ("none", "full", "last_k", "lora")


class Eyes(nn.Module):
    """The backbone of an encoder, some of it trained: `full`, the `last_k` blocks, or low-rank additions (LoRA).

    Only blocks that features pass through are touched. A tokenizer stays as it is: its codes have no gradient.
    Frames are seen one at a time; ValueError for an encoder that remembers, or has no blocks of ours.
    """

    def __init__(self, encoder: Encoder, mode: str, *, blocks: int, rank: int, seed: int) -> None:
        super().__init__()
        self.encoder = trainable(encoder)
        self.model = copy.deepcopy(self.encoder.model).requires_grad_(False)
        passed = _blocks(self.model, self.encoder)
        if mode == "last_k" and not 1 <= blocks <= len(passed):
            raise ValueError(f"expected bc.finetune_layers in 1..{len(passed)} (blocks that run), got {blocks}")
        generator = torch.Generator().manual_seed(seed)
        if mode == "full":
            _entry(self.model).requires_grad_(True)
        for block in passed[-blocks:] if mode == "last_k" else passed:
            if mode == "lora":
                _add_low_rank(block, rank, generator)
            else:
                block.requires_grad_(True)

    def forward(self, shown: Tensor) -> Tensor:
        """Return features (B, P, D) of frames as `prepare` gives them, with gradients."""
        with autocast(self.encoder.precision, self.encoder.device):
            return backbone_features(self.encoder, self.model, shown.to(self.encoder.device)).to(shown.device)

    def finished(self) -> Encoder:
        """Return the encoder with the weights as they are now, what LoRA has added merged into them."""
        encoder = copy.copy(self.encoder)
        encoder.model = copy.deepcopy(self.encoder.model)
        encoder.model.load_state_dict(_merged(self.model))
        # Written and read, because hash, precision and copies of the weights are an encoder's own business.
        with tempfile.TemporaryDirectory() as folder:
            encoder.save(Path(folder))
            settings: dict[str, Any] = encoder.settings()
            found = load_encoder(folder, device=encoder.device, **settings)
        found.name = self.encoder.name  # a random one that has learned is not the pretrained one
        return found


def trainable(encoder: Encoder) -> TotoEncoder | MAEEncoder:
    """Return the encoder; ValueError where it cannot be trained."""
    if not isinstance(encoder, TotoEncoder | MAEEncoder):
        raise ValueError(f"bc.finetune trains Toto and MAE encoders, got {encoder.name}; use bc.finetune=none")
    if encoder.context_frames != 1:
        raise ValueError(
            f"bc.finetune sees one frame at a time, the encoder looks back on {encoder.context_frames}; "
            "use encoder.context_frames=1"
        )
    if max(encoder.layers) == 0:
        raise ValueError("bc.finetune needs blocks to train, and encoder.layer=0 runs none; use a deeper layer")
    return encoder


def prepare(encoder: Encoder, images: np.ndarray) -> np.ndarray:
    """Return what `Eyes` are given of images (T, h, w, 3): Toto's tokens (T, P) int32, or pictures that fit, uint8."""
    eyes = trainable(encoder)
    if isinstance(eyes, TotoEncoder):
        return eyes.codes(images).to(torch.int32).cpu().numpy()
    return fit_frames(images, eyes.image_px, torch.device("cpu")).numpy()


def backbone_features(encoder: TotoEncoder | MAEEncoder, model: Any, shown: Tensor) -> Tensor:
    """Return the features (B, P, D) that a backbone of this encoder gives of what `prepare` returns."""
    if isinstance(encoder, TotoEncoder):
        ids, _ = model.config.pack(shown[:, None].long())
        return concatenate(model(ids, layers=encoder.layers, logits=False).features, encoder.layers)[:, 1:]
    return concatenate(mae_features(model, normalise_pixels(shown), encoder.layers), encoder.layers)


def _blocks(model: Any, encoder: TotoEncoder | MAEEncoder) -> list[nn.Module]:
    blocks = model.blocks if isinstance(encoder, TotoEncoder) else model.vit.layers
    return list(blocks[: max(encoder.layers)])


def _entry(model: Any) -> nn.Module:
    """Return what turns input into the first features: the embedding of tokens or patches."""
    entry: nn.Module = model.embed if hasattr(model, "embed") else model.vit.embeddings.patch_embeddings
    return entry


class LowRank(nn.Module):
    """W + up @ down * 2: what LoRA adds to a matrix (Hu et al. 2021), nothing at first. Its alpha is twice the rank."""

    def __init__(self, weight: Tensor, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        rows, columns = weight.shape
        self.down = nn.Parameter(torch.randn(rank, columns, generator=generator) / columns**0.5)
        self.up = nn.Parameter(torch.zeros(rows, rank))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the changed matrix."""
        return weight + 2 * (self.up @ self.down)


def _merged(model: nn.Module) -> dict[str, Tensor]:
    """Return the state of a model without low-rank additions: their sum in the place of each matrix.

    Not by torch's remove_parametrizations: it takes the property off the class, which copies of the model share.
    """
    state = {key: value for key, value in model.state_dict().items() if ".parametrizations.weight." not in key}
    for name, module in model.named_modules():
        if parametrize.is_parametrized(module, "weight"):
            merged: Any = module.weight
            state[f"{name}.weight"] = merged.detach()
    return state


def _add_low_rank(block: nn.Module, rank: int, generator: torch.Generator) -> None:
    for layer in list(block.modules()):
        if isinstance(layer, nn.Linear):
            addition = LowRank(layer.weight, rank, generator).to(layer.weight.device)
            parametrize.register_parametrization(layer, "weight", addition)
