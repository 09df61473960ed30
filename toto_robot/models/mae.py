"""What is the baseline, MAE, at a size equal to ours?

The model is `ViTMAEForPreTraining` of transformers, not a copy of it: the baseline should be other people's code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import ViTMAEForPreTraining

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class MAEConfig:
    """Sizes of a masked autoencoder (arXiv 2111.06377)."""

    name: str
    image_px: int
    patch_px: int
    width: int
    layers: int
    heads: int
    ffn_width: int
    decoder_width: int
    decoder_layers: int
    decoder_heads: int
    decoder_ffn_width: int
    mask_ratio: float = 0.75
    norm_pix_loss: bool = True  # targets are pixels normalised by patch
    norm_eps: float = 1e-6  # the authors' code; the default of transformers is 1e-12

    def __post_init__(self) -> None:
        if self.image_px % self.patch_px:
            raise ValueError(f"image_px {self.image_px} must be a multiple of patch_px {self.patch_px}")
        if not 0 <= self.mask_ratio < 1:
            raise ValueError(f"mask_ratio must lie in [0, 1), got {self.mask_ratio}")

    @property
    def tokens_per_frame(self) -> int:
        """Patches of an image, P."""
        return (self.image_px // self.patch_px) ** 2


def build_mae(config: MAEConfig, *, seed: int = 0) -> ViTMAEForPreTraining:
    """Build the transformers model, its weights drawn from `seed` without touching the global generator."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining  # seconds to import, not needed for Toto

    theirs = ViTMAEConfig(
        image_size=config.image_px, patch_size=config.patch_px,
        hidden_size=config.width, num_hidden_layers=config.layers,
        num_attention_heads=config.heads, intermediate_size=config.ffn_width, decoder_hidden_size=config.decoder_width,
        decoder_num_hidden_layers=config.decoder_layers, decoder_num_attention_heads=config.decoder_heads,
        decoder_intermediate_size=config.decoder_ffn_width, mask_ratio=config.mask_ratio,
        norm_pix_loss=config.norm_pix_loss, layer_norm_eps=config.norm_eps, name_or_path=config.name,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ViTMAEForPreTraining(theirs)
        _initialise_as_published(model)
        return model


@torch.no_grad()
def _initialise_as_published(model: ViTMAEForPreTraining) -> None:
    """Give a fresh model MAE's fixed sine positions and its draws: Xavier for matrices, N(0, 0.02) for CLS and mask.

    transformers 5.23 leaves positions and both tokens at zero in a model that is built rather than loaded: without
    positions MAE learns the mean of each patch and nothing more. Its N(0, 0.02) matrices are a third of Xavier's at
    these small widths; they leave that plateau twice as late.
    """
    embeddings, decoder = model.vit.embeddings, model.decoder
    side = math.isqrt(embeddings.position_embeddings.shape[1] - 1)
    for table in (embeddings.position_embeddings, decoder.decoder_pos_embed):
        table.copy_(sine_positions(side, table.shape[-1]))
    for module in model.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            torch.nn.init.xavier_uniform_(module.weight.view(len(module.weight), -1))
    for token in (embeddings.cls_token, decoder.mask_token):
        token.normal_(std=model.config.initializer_range)


def sine_positions(side: int, width: int) -> Tensor:
    """Return MAE's fixed positions (1, 1 + side * side, width): zeros for CLS, then column and row, raster order."""
    frequency = 10_000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angle = torch.arange(side, dtype=torch.float64)[:, None] * frequency  # (side, width / 4)
    one = torch.cat([angle.sin(), angle.cos()], dim=1)  # (side, width / 2)
    grid = torch.cat([one.repeat(side, 1), one.repeat_interleave(side, dim=0)], dim=1)  # column, then row
    return torch.cat([torch.zeros(1, width, dtype=torch.float64), grid]).float()[None]


def mae_config(model: ViTMAEForPreTraining) -> MAEConfig:
    """Return our configuration of a transformers model."""
    theirs = model.config
    return MAEConfig(
        name=theirs.name_or_path or "custom", image_px=theirs.image_size, patch_px=theirs.patch_size,
        width=theirs.hidden_size, layers=theirs.num_hidden_layers, heads=theirs.num_attention_heads,
        ffn_width=theirs.intermediate_size, decoder_width=theirs.decoder_hidden_size,
        decoder_layers=theirs.decoder_num_hidden_layers, decoder_heads=theirs.decoder_num_attention_heads,
        decoder_ffn_width=theirs.decoder_intermediate_size, mask_ratio=theirs.mask_ratio,
        norm_pix_loss=theirs.norm_pix_loss, norm_eps=theirs.layer_norm_eps,
    )  # fmt: skip


def normalise_pixels(images: Tensor) -> Tensor:
    """Map uint8 RGB (B, h, w, 3) to float32 (B, 3, h, w) by ImageNet's mean and deviation, as MAE expects."""
    mean = torch.tensor(IMAGENET_MEAN, device=images.device).view(3, 1, 1)
    std = torch.tensor(IMAGENET_STD, device=images.device).view(3, 1, 1)
    return (images.permute(0, 3, 1, 2).float() / 255 - mean) / std


def mae_features(model: ViTMAEForPreTraining, pixels: Tensor, layers: Sequence[int]) -> dict[int, Tensor]:
    """Return patch features (B, P, D) by layer, in raster order, of un-masked normalised pixels (B, 3, h, w), no CLS.

    Layer l is the residual stream after block l (0 the embedding); the last passes the final LayerNorm too, as MAE's
    probes and MVP use it. Blocks above the deepest layer are not run. Raises ValueError for a layer out of range.
    """
    vit, depth = model.vit, len(model.vit.layers)
    if not all(0 <= layer <= depth for layer in layers):
        raise ValueError(f"layers must lie in 0..{depth} (0 = embedding), got {tuple(layers)}")
    embeddings = vit.embeddings
    patches = embeddings.patch_embeddings(pixels) + embeddings.position_embeddings[:, 1:]
    cls = embeddings.cls_token + embeddings.position_embeddings[:, :1]
    x = torch.cat([cls.expand(len(patches), -1, -1), patches], dim=1)  # (B, 1 + P, D), as a mask ratio of 0 would
    features = {0: x[:, 1:]} if 0 in layers else {}
    for layer, block in enumerate(vit.layers[: max(layers, default=0)], start=1):
        x = block(x, None)
        if layer in layers:
            features[layer] = (vit.layernorm(x) if layer == depth else x)[:, 1:]
    return features
